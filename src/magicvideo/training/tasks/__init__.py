"""One file a stage: a network, its batches and its losses."""

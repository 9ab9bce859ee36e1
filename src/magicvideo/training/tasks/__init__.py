"""The tasks of the stages: networks, batches and losses."""

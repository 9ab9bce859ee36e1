"""Networks that turn clips and captions into features: given by path, never fetched unasked."""

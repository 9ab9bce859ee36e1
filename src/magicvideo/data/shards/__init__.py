"""Encoded clips in tar shards in WebDataset's layout: the format, and reading for training."""

"""Encoded clips in tar shards in WebDataset's layout: format, writer, and reader for training."""

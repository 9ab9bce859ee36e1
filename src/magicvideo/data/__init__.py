"""Sources of clips, their preparation into a cache or shards, and training samples from them."""

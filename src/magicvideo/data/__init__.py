"""Sources of clips, their preparation into a cache, and training samples out of that cache."""

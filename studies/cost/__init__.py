"""The cost of the paper's network beside others, counted in FLOPs."""

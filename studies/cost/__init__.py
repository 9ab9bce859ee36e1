"""The cost of the paper's network and of other networks, counted in FLOPs."""

"""What the paper's network costs beside others, counted and never timed."""

"""Flow 2: clips to checkpoints. One loop, and one small task a stage."""

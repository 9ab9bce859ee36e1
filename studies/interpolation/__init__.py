"""Interpolation against linear interpolation and frame repetition on held-out clips."""

"""Interpolation against blending and frame repetition on held-out clips."""

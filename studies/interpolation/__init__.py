"""Frames between key frames: ours against blending and standing still, on held-out clips."""

"""The independent judge: a small video-text matcher that never meets the generator."""

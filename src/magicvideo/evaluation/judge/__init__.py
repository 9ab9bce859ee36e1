"""The independent judge: a small video-text matcher, trained separately from the generator."""

"""Conversion from Stable Diffusion to model folders, and of image networks back to diffusers."""

"""Stable Diffusion's weights into a model folder, and the image network back out of one."""

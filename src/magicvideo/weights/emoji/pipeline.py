"""Lets `diffusers.DiffusionPipeline.from_pretrained` load this folder.

`magicvideo.MagicVideoPipeline.from_pretrained` does not run this file.
"""

from magicvideo import MagicVideoPipeline

__all__ = ["MagicVideoPipeline"]

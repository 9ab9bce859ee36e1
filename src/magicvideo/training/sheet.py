"""Contact sheets: rows of frames, for people to look at."""

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from magicvideo.shapes import Frames


def contact_sheet(frames: Frames, enlarge: int = 1) -> Image.Image:
    """Return a picture with one row for each video and one column for each frame.

    Args:
        frames: Pixels in [-1, 1].
        enlarge: Whole number by which every pixel is repeated.
    """
    grid = rearrange(frames.float().cpu(), "b f c h w -> (b h) (f w) c")
    pixels = torch.round((grid.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).numpy()
    return Image.fromarray(np.repeat(np.repeat(pixels, enlarge, axis=0), enlarge, axis=1))

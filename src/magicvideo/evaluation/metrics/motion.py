"""How much a video moves, and how much of that is flicker where nothing should move."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from magicvideo.shapes import Frames

LEVELS = 127.5
"""Levels of 8-bit pixels in one unit of ours, which span 2."""


def temporal_change(frames: Frames) -> Float[Tensor, " b"]:
    """Return the mean absolute change of a pixel from one frame to the next, one figure a clip.

    The unit is that of the pixels (a span of 2). A still video has 0. Computed in float64.
    """
    return frames.double().diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def flicker(frames: Frames, region: Bool[Tensor, "h w"]) -> Float[Tensor, " b"]:
    """Return the temporal change inside a region that should stand still.

    Independent noise of deviation s in every pixel scores 2 s / sqrt(pi) = 1.1284 s. VBench's
    "temporal flickering" is 1 - this / 255 over whole frames in 8-bit levels.
    """
    return frames[..., region].double().diff(dim=1).abs().mean(dim=(1, 2, 3))


def static_mask(video: Float[Tensor, "f rgb h w"]) -> Bool[Tensor, "h w"]:
    """Mark the pixels that have the same colour in all frames, to the last bit."""
    return (video == video[:1]).all(dim=1).all(dim=0)


def corner_mask(height: int, width: int) -> Bool[Tensor, "h w"]:
    """Mark the four corner rectangles, an eighth of each side long, where backgrounds show."""
    rows, columns = torch.zeros(height, dtype=torch.bool), torch.zeros(width, dtype=torch.bool)
    for edge in (rows, columns):
        depth = max(1, len(edge) // 8)
        edge[:depth] = edge[len(edge) - depth :] = True
    return rows[:, None] & columns[None, :]

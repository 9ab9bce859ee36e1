"""How much the edges of two pictures differ."""

from jaxtyping import Float
from torch import Tensor

from magicvideo.shapes import FoldedFrames


def gradient_loss(rebuilt: FoldedFrames, pixels: FoldedFrames) -> Float[Tensor, ""]:
    """Return L1 between the changes from a pixel to its neighbours, along rows and along columns.

    A blurred edge has a small squared error and a large one here.
    """
    error = rebuilt - pixels
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()

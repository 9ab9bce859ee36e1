"""Frames of any size for networks that halve them: padded here, and cut back by the caller."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magicvideo.shapes import FoldedFrames


def pad_to_multiple(frames: FoldedFrames, multiple: int) -> Float[Tensor, "n c tall wide"]:
    """Return frames whose sides are multiples, by repeating their last rows and columns."""
    below, right = (-side % multiple for side in frames.shape[-2:])
    return F.pad(frames, (0, right, 0, below), mode="replicate")

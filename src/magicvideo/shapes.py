"""Axis names in signatures, and aliases of common tensors.

b  videos in a batch          f  frames of a video        n  frames of all videos, "(b f)"
c  channels                   h  height                   w  width
l  tokens of a condition      d  width of a token         p  positions of a frame, "(h w)"
g  gaps between key frames    k  new frames in a gap

`Frames` are pixels in [-1, 1]; their sides have long names, since those of latents differ.
`Latents` are the denoiser's input: the autoencoder's output times its scaling factor, so that
their standard deviation is about 1. Inside a network frames are folded into the batch; with this
axis order that is a view.
"""

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from magicvideo.errors import UserError

Frames: TypeAlias = Float[Tensor, "b f rgb height width"]
Latents: TypeAlias = Float[Tensor, "b f c h w"]
Tokens: TypeAlias = Float[Tensor, "b l d"]
FoldedFrames: TypeAlias = Float[Tensor, "n c h w"]


def check_finite(values: Tensor, what: str) -> None:
    """Check that values are finite, before they are written or shown.

    Args:
        values: Any floating-point tensor.
        what: What they are, as the start of the sentence.

    Raises:
        UserError: If one is not finite.
    """
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise UserError(
            f"{what} hold {bad:,} of {values.numel():,} numbers that are not finite (NaN or "
            "infinite), so nothing was written; the weights, a LoRA or half precision are to blame."
        )

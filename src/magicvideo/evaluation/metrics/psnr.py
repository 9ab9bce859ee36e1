"""Peak signal-to-noise ratio of reconstructed clips."""

import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.shapes import Frames

_PEAK = 2.0  # pixels span [-1, 1]


def psnr(frames: Frames, reference: Frames) -> Float[Tensor, " b"]:
    """Return one decibel figure a clip: the mean squared error of all its pixels against the peak.

    Args:
        frames: Reconstructed pixels in [-1, 1].
        reference: The original pixels, of the same shape.

    Returns:
        PSNR in dB; infinite where both are equal.
    """
    error = (frames.double() - reference.double()).square().mean(dim=(1, 2, 3, 4))
    return 10 * torch.log10(_PEAK**2 / error)

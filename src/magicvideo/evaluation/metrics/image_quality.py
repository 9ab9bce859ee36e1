"""PSNR and SSIM of frames against their reference frames."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from magicvideo.shapes import Frames

_PEAK = 2.0  # pixels span [-1, 1]


def psnr(frames: Frames, reference: Frames) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio of each clip over all its pixels.

    Args:
        frames: Reconstructed pixels in [-1, 1].
        reference: The original pixels, of the same shape.

    Returns:
        PSNR in dB; infinite where both are equal.
    """
    error = (frames.double() - reference.double()).square().mean(dim=(1, 2, 3, 4))
    # decibels: ten times the decimal logarithm of peak power over error power
    return 10 * torch.log10(_PEAK**2 / error)


# red, green and blue in the luma of BT.601
_LUMA = (0.299, 0.587, 0.114)
_EDGE = 5  # pixels to the middle of a window: whole windows count alone


def ssim(video: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> float:
    """Return the mean structural similarity of the frames' luma, in float64.

    Gaussian windows of deviation 1.5, C1 = 0.01^2 and C2 = 0.03^2 for pixels from 0 to 1. The
    measure is not the same for pixels from -1 to 1: its first factor compares means.

    Args:
        video: Pixels in [-1, 1].
        reference: The original pixels, of the same shape, with sides of at least 11.
    """
    _, places = structural_similarity_index_measure(
        _grey(video), _grey(reference), data_range=1.0, return_full_image=True
    )
    return places[..., _EDGE:-_EDGE, _EDGE:-_EDGE].mean().item()


def _grey(video: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 1 h w"]:
    weights = torch.tensor(_LUMA, dtype=torch.float64)[:, None, None]
    return ((video.double() + 1) / 2 * weights).sum(dim=1, keepdim=True)

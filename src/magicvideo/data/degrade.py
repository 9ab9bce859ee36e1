"""Synthetic degradation of frames for training the upscaler: downsampling kernels and blur."""

from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magicvideo.rng import StackedGenerator
from magicvideo.shapes import FoldedFrames

Kernel: TypeAlias = Literal["area", "bilinear", "bicubic"]
SmallFrames: TypeAlias = Float[Tensor, "n c _ _"]

# standard deviations of the blur in pixels of the small frame, from hardly visible to soft
_BLURS = (0.3, 1.0)
_RADIUS = 3  # of the blur, in pixels: three times its largest standard deviation


def downsample(frames: FoldedFrames, factor: int, kernel: Kernel = "area") -> SmallFrames:
    """Return frames whose sides are divided by a whole number.

    Args:
        frames: Their sides are multiples of `factor`.
        factor: Divisor of the sides.
        kernel: `area` is the mean of each square, as in preparation; the others are antialiased
            interpolation, as other programs resize.
    """
    if kernel == "area":
        return F.avg_pool2d(frames, factor)
    return F.interpolate(
        frames, scale_factor=1 / factor, mode=kernel, antialias=True, align_corners=False
    )


def random_degrade(
    frames: FoldedFrames, factor: int, probability: float, generator: StackedGenerator
) -> SmallFrames:
    """Downsample frames: some by a random kernel and with blur, the others by area.

    Args:
        frames: Their sides are multiples of `factor`.
        factor: Divisor of the sides.
        probability: That a frame gets a random kernel and blur.
        generator: Source of every choice.
    """
    varied = generator.uniform(len(frames)) < probability
    kernels = generator.integers(len(get_args(Kernel)), len(frames))
    sigmas = _BLURS[0] + (_BLURS[1] - _BLURS[0]) * generator.uniform(len(frames))
    small = downsample(frames, factor)
    for number, kernel in enumerate(get_args(Kernel)):
        # places and not a mask: their number is known on the host, also for frames on a meta device
        places = (varied & (kernels == number)).nonzero()[:, 0]
        if len(places):
            chosen = places.to(frames.device)
            small[chosen] = downsample(frames[chosen], factor, kernel)
    places = varied.nonzero()[:, 0]
    if len(places):
        chosen = places.to(frames.device)
        small[chosen] = blur(small[chosen], sigmas[places].to(frames.device))
    return small


def blur(frames: FoldedFrames, sigmas: Float[Tensor, " n"]) -> FoldedFrames:
    """Blur each frame by a Gaussian of its own standard deviation, in pixels."""
    places = torch.arange(-_RADIUS, _RADIUS + 1, device=frames.device)
    weights = torch.exp(-0.5 * (places / sigmas.clamp(min=1e-3)[:, None]).square())
    weights = weights / weights.sum(dim=1, keepdim=True)
    rows = F.pad(frames, (_RADIUS,) * 4, mode="replicate").unfold(3, len(places), 1)
    columns = torch.einsum("nchwk,nk->nchw", rows, weights)
    return torch.einsum("nchwk,nk->nchw", columns.unfold(2, len(places), 1), weights)


def paired_random_crop(
    large: FoldedFrames, small: SmallFrames, side: int, generator: StackedGenerator
) -> tuple[SmallFrames, SmallFrames]:
    """Cut the same random square out of large and small frames, another one for each pair.

    Args:
        large: Frames of a whole multiple of the sides of `small`.
        small: The same frames, small.
        side: Of the squares, in pixels of the small frames.
        generator: Source of the places.
    """
    factor = large.shape[-1] // small.shape[-1]
    tops = generator.integers(small.shape[-2] - side + 1, len(small))
    lefts = generator.integers(small.shape[-1] - side + 1, len(small))
    pairs = []
    for frames, scale in ((large, factor), (small, 1)):
        squares = [
            frame[:, scale * top : scale * (top + side), scale * left : scale * (left + side)]
            for frame, top, left in zip(frames, tops.tolist(), lefts.tolist(), strict=True)
        ]
        pairs.append(torch.stack(squares))
    return pairs[0], pairs[1]

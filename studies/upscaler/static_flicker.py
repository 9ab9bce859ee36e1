"""Flicker of enlarged frames in a row where the clip itself stands still."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from magicvideo.evaluation.confidence_intervals import Estimate, mean, ratio_of_means
from magicvideo.evaluation.metrics.motion import LEVELS, corner_mask, flicker, static_mask
from studies.upscaler.methods import SmallVideo, UpscaleMethod, downsample, nearest_upsample

REAL = "real clips"


@dataclass(frozen=True, kw_only=True)
class FlickerScore:
    """The flicker of one way to enlarge, or of the real clips.

    Attributes:
        name: The way, or `REAL`.
        flicker: Mean absolute change from frame to frame where the small clip stands still, in
            levels of 255, mean over clips.
        in_corners: That in the corners of the frames, times the real clips' there; None where
            theirs is zero.
    """

    name: str
    flicker: Estimate
    in_corners: Estimate | None


@torch.no_grad()
def score_static_flicker(
    ways: Sequence[UpscaleMethod],
    videos: Iterable[SmallVideo],
    factor: int,
    *,
    is_large: bool,
    on_clip: Callable[[int], None],
) -> list[FlickerScore]:
    """Enlarge clips in every way, and measure the change of what does not change in the small ones.

    Args:
        ways: What is compared.
        videos: Real frames in a row. Clips in which everything moves are left out.
        factor: How many times the side grows.
        is_large: Whether the videos are large ones, to be shrunk first.
        on_clip: Called with the number of clips that are done.

    Returns:
        One entry a way, and the real clips' own at the end; none where all clips were left out.
    """
    names = [*(way.name for way in ways), REAL]
    figures = []
    for place, real in enumerate(videos):
        small = downsample(real, factor) if is_large else real
        still = static_mask(small)
        if still.any():
            large = nearest_upsample(still, factor)
            made = [_flickers(way.enlarge(small, place), large) for way in ways]
            figures.append([*made, _flickers(real, large if is_large else still)])
        on_clip(place + 1)
    if not figures:
        return []
    by_way = np.array(figures).transpose(1, 2, 0)
    real_corners = by_way[-1, 1]
    return [
        FlickerScore(
            name=name,
            flicker=mean(LEVELS * still),
            in_corners=ratio_of_means(cornered, real_corners) if real_corners.any() else None,
        )
        for name, (still, cornered) in zip(names, by_way, strict=True)
    ]


def _flickers(video: Float[Tensor, "f rgb h w"], still: Bool[Tensor, "h w"]) -> tuple[float, float]:
    """Return the flicker where a clip stands still, and that of the corners."""
    regions = (still, corner_mask(*video.shape[-2:]))
    where_still, in_corners = (flicker(video[None], region).item() for region in regions)
    return where_still, in_corners

"""Flicker of enlarged frames in a row where the clip itself stands still."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from magicvideo.evaluate.intervals import Estimate, mean
from magicvideo.evaluate.metrics.motion import LEVELS, flicker, static_region
from magicvideo.evaluate.upscaler.enlarging import SmallVideo, Way, make_small

REAL = "real clips"


@dataclass(frozen=True, kw_only=True)
class Stillness:
    """The flicker of one way to enlarge, or of the real clips.

    Attributes:
        name: The way, or `REAL`.
        flicker: Mean absolute change from frame to frame, in levels of 255, mean over clips.
    """

    name: str
    flicker: Estimate


@torch.no_grad()
def score_stillness(
    ways: Sequence[Way],
    videos: Iterable[SmallVideo],
    factor: int,
    *,
    is_large: bool,
    on_clip: Callable[[int], None],
) -> list[Stillness]:
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
        small = make_small(real, factor) if is_large else real
        still = static_region(small)
        if still.any():
            large = _enlarged(still, factor)
            own = flicker(real[None], large if is_large else still).item()
            made = [flicker(way.enlarge(small, place)[None], large).item() for way in ways]
            figures.append([*made, own])
        on_clip(place + 1)
    if not figures:
        return []
    return [
        Stillness(name=name, flicker=mean(LEVELS * column))
        for name, column in zip(names, np.array(figures).T, strict=True)
    ]


def _enlarged(region: Bool[Tensor, "h w"], factor: int) -> Bool[Tensor, "tall wide"]:
    return region.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)

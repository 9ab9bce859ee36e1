"""Flicker and motion of finished videos: what all stages together make of a caption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.confidence_intervals import Estimate, mean, ratio_of_means
from magicvideo.evaluation.metrics.motion import LEVELS, corner_mask, flicker, temporal_change
from magicvideo.evaluation.prompt_sets import Prompt, from_uint8, real_videos, to_uint8
from magicvideo.pipelines.request import GenerationSettings
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.upscaler.static_flicker import REAL

BEFORE, FINISHED = "generated, before super-resolution", "generated, all stages"


@dataclass(frozen=True, kw_only=True)
class TemporalStats:
    """How much videos change from frame to frame.

    Attributes:
        name: `BEFORE`, `FINISHED` or `REAL`.
        flicker: Mean absolute change in the corners, in levels of 255.
        change: That of whole frames.
        times_flicker: `flicker` as a multiple of the real clips'; None where theirs is zero.
        times_change: `change` likewise.
    """

    name: str
    flicker: Estimate
    change: Estimate
    times_flicker: Estimate | None
    times_change: Estimate | None


@torch.no_grad()
def score_generated_flicker(
    pipeline: MagicVideoPipeline,
    dataset: ClipDataset,
    prompts: Sequence[Prompt],
    on_video: Callable[[int], None],
) -> list[TemporalStats]:
    """Generate videos by all stages at the model's default settings, and measure their frames.

    Frames are read in 8 bits, and no codec touches them.

    Args:
        pipeline: A model with an upscaler.
        dataset: Clips that the prompts are captions of.
        prompts: One for each video.
        on_video: Called with the number of videos that are done.

    Returns:
        The videos before super-resolution, after it, and as many frames in a row of the real clips;
        nothing where there is no prompt.
    """
    if not prompts:
        return []
    requests = [
        pipeline.build_requests([prompt.caption], [prompt.seed], GenerationSettings())[0]
        for prompt in prompts
    ]
    figures = []
    reals = real_videos(dataset, list(prompts), requests[0].video_frames, 1)
    for done, (request, real) in enumerate(zip(requests, reals, strict=True), start=1):
        frames = pipeline.decode(pipeline.generate_latents(request))
        large = pipeline.upscale(request, frames)
        made = (from_uint8(to_uint8(video[0].cpu())) for video in (frames, large))
        figures.append([_figures(video) for video in (*made, real)])
        on_video(done)
    by_row = np.array(figures).transpose(1, 2, 0)
    return [
        _summary(name, found, by_row[-1])
        for name, found in zip((BEFORE, FINISHED, REAL), by_row, strict=True)
    ]


def _figures(video: Float[Tensor, "f 3 h w"]) -> tuple[float, float]:
    """Return the flicker of the corners and the change of the whole."""
    whole = video[None]
    return flicker(whole, corner_mask(*video.shape[-2:])).item(), temporal_change(whole).item()


def _summary(
    name: str, figures: Float[np.ndarray, "two n"], real: Float[np.ndarray, "two n"]
) -> TemporalStats:
    flickers, changes = figures
    real_flickers, real_changes = real
    return TemporalStats(
        name=name,
        flicker=mean(LEVELS * flickers),
        change=mean(LEVELS * changes),
        times_flicker=ratio_of_means(flickers, real_flickers) if real_flickers.any() else None,
        times_change=ratio_of_means(changes, real_changes) if real_changes.any() else None,
    )

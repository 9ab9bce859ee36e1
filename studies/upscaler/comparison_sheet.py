"""A contact sheet to judge by eye: the same frames enlarged in every way, and the real ones."""

from pathlib import Path

import torch

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.prompt_sets import draw_prompts, real_videos
from magicvideo.evaluation.sheet import write_sheet
from studies.upscaler.evaluation import UpscalerEvaluation
from studies.upscaler.methods import (
    Way,
    check_upscaler,
    make_small,
    network_at,
    repeat_pixels,
    resizing,
)

_SHOWN = 5  # clips, side by side at full size


@torch.no_grad()
def write_pictures(evaluation: UpscalerEvaluation, path: Path) -> None:
    """Write a PNG with a frame of each of a few clips: small, enlarged in every way, and real.

    Args:
        evaluation: Names the model and the clips, of which the first are shown.
        path: The file, replaced.

    Raises:
        UserError: If the model has no upscaler, or the data do not fit it or are too few.
    """
    pipeline, factor = evaluation.pipeline, check_upscaler(evaluation.pipeline)
    dataset = ClipDataset(evaluation.data, ("heldout",))
    prompts = draw_prompts(dataset, evaluation.clips, evaluation.seed)[:_SHOWN]
    reals = list(real_videos(dataset, prompts, 1, 1))
    ways = [
        Way("small, pixels repeated", lambda small, _: repeat_pixels(small, factor)),
        *resizing(pipeline),
        network_at(pipeline, pipeline.traits.default_upscaler_steps),
    ]
    rows = [
        (way.name, [way.enlarge(make_small(real, factor), k) for k, real in enumerate(reals)])
        for way in ways
    ]
    strips = [(name, torch.cat(frames)) for name, frames in (*rows, ("real", reals))]
    write_sheet(strips, len(reals), path, cell=dataset.info.size)

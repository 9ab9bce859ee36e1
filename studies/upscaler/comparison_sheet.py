"""A contact sheet to judge by eye: the same frames enlarged in every way, and the real ones."""

from pathlib import Path

import torch

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from magicvideo.evaluation.sheet import write_sheet
from studies.upscaler.evaluation import UpscalerEvaluation
from studies.upscaler.methods import (
    UpscaleMethod,
    check_upscaler,
    downsample,
    nearest_upsample,
    network_method,
    resize_methods,
)

_SHOWN = 5  # clips, side by side at full size


@torch.no_grad()
def write_comparison_sheet(evaluation: UpscalerEvaluation, path: Path) -> None:
    """Write a PNG with a frame of each of a few clips: small, enlarged in every way, and real.

    Args:
        evaluation: Names the model and the clips, of which the first are shown.
        path: The file, replaced.

    Raises:
        UserError: If the model has no upscaler, or the data do not fit it or are too few.
    """
    pipeline, factor = evaluation.pipeline, check_upscaler(evaluation.pipeline)
    dataset = ClipDataset(evaluation.data, ("heldout",))
    prompts = sample_prompts(dataset, evaluation.clips, evaluation.seed)[:_SHOWN]
    reals = list(real_videos(dataset, prompts, 1, 1))
    ways = [
        UpscaleMethod("small, pixels repeated", lambda small, _: nearest_upsample(small, factor)),
        *resize_methods(pipeline),
        network_method(pipeline, pipeline.capabilities.default_upscaler_steps),
    ]
    rows = [
        (way.name, [way.enlarge(downsample(real, factor), k) for k, real in enumerate(reals)])
        for way in ways
    ]
    strips = [(name, torch.cat(frames)) for name, frames in (*rows, ("real", reals))]
    write_sheet(strips, len(reals), path, cell=dataset.info.size)

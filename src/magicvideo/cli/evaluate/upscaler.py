"""`magicvideo evaluate upscaler`: super-resolution against resizing, and its steps."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.evaluate.options import DEFAULT_PAGE, Data, Model, Page, Seed
from magicvideo.cli.evaluate.preparing import load, prepare_section, progress, write_results

_SECTION = "upscaler"


def upscaler(
    data: Data,
    model: Model = None,
    output: Page = DEFAULT_PAGE,
    clips: Annotated[int, typer.Option(min=2, help="How many.")] = 100,
    frames: Annotated[int, typer.Option(min=1, help="Of each clip.")] = 1,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Diffusion steps of the curve; may be repeated. [default: 1, 2, 4, 8, 16]"
        ),
    ] = None,
    moving: Annotated[
        Path | None,
        typer.Option(
            help="Folder of clips prepared at the small size with all their frames, for flicker; "
            "by default the large frames, shrunk."
        ),
    ] = None,
    moving_clips: Annotated[int, typer.Option(min=1, help="How many for flicker.")] = 40,
    moving_frames: Annotated[int, typer.Option(min=2, help="Of each of these.")] = 12,
    seed: Seed = 0,
) -> None:
    """Compare the upscaler with resizing on large frames, and its steps with each other.

    Example:
      magicvideo evaluate upscaler --data data/emoji256 --moving data/emoji64
    """
    prepare_section(output, _SECTION)
    from magicvideo.evaluate.upscaler.evaluation import UpscalerEvaluation
    from magicvideo.evaluate.upscaler.report import section_parts

    evaluation = UpscalerEvaluation(
        pipeline=load(model),
        data=data,
        clips=clips,
        frames=frames,
        steps=tuple(steps or (1, 2, 4, 8, 16)),
        moving=moving,
        moving_clips=moving_clips,
        moving_frames=moving_frames,
        seed=seed,
    )
    options = {
        "data": data,
        "model": model,
        "clips": clips,
        "frames": frames,
        "steps": steps,
        "moving": moving,
        "moving-clips": moving_clips,
        "moving-frames": moving_frames,
        "seed": seed,
    }
    with progress() as report:
        scores = evaluation.run(report)
    write_results(output, _SECTION, [], options, section_parts(evaluation, scores))

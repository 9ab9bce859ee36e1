"""`python -m studies upscaler`: super-resolution against resizing, by number of steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import (
    DEFAULT_PAGE,
    Data,
    Model,
    Page,
    Seed,
    check_target,
    load,
    prepare_section,
    progress,
    write_results,
)
from magicvideo.cli.options import with_option_groups
from studies import PROGRAM

_SECTION = "upscaler"


@dataclass(frozen=True)
class UpscalerOptions:
    """Clips, methods and measures of the comparison."""

    clips: Annotated[int, typer.Option(min=2, help="Number of clips.")] = 100
    frames: Annotated[int, typer.Option(min=1, help="Consecutive frames per clip.")] = 1
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Diffusion steps to compare; repeatable. [default: 1, 2, 4, 8, 16]"
        ),
    ] = None
    noise: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            help="Standard deviation of the noise on the latents of frames that pass through the "
            "autoencoder first; repeatable. [default: 0 and 0.1]",
        ),
    ] = None
    moving: Annotated[
        Path | None,
        typer.Option(
            help="Folder of clips prepared at the small size with all their frames, for flicker "
            "and the comparison with generated videos; by default the large frames, downsampled."
        ),
    ] = None
    moving_clips: Annotated[int, typer.Option(min=1, help="Number of clips for flicker.")] = 40
    moving_frames: Annotated[
        int, typer.Option(min=2, help="Consecutive frames per clip for flicker.")
    ] = 12
    generated: Annotated[
        int, typer.Option(min=0, help="Finished videos to generate; 0 skips them.")
    ] = 30
    seed: Seed = 0

    @property
    def curve(self) -> list[int]:
        """Return the numbers of diffusion steps to compare."""
        return self.steps or [1, 2, 4, 8, 16]

    @property
    def levels(self) -> list[float]:
        """Return the standard deviations of the noise on the latents."""
        return self.noise or [0.0, 0.1]


@with_option_groups
def upscaler(
    data: Data,
    trial: UpscalerOptions,
    model: Model = None,
    output: Page = DEFAULT_PAGE,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="A PNG to write: a few small frames, upscaled by every method, and the real "
            "frames."
        ),
    ] = None,
) -> None:
    """Compare the upscaler at several numbers of steps with resizing.

    Example:
      python -m studies upscaler --data data/emoji256 --moving data/emoji64
    """
    prepare_section(output, _SECTION)
    if sheet is not None:
        check_target(sheet)
    from studies.upscaler.evaluation import UpscalerEvaluation, write_comparison_sheet
    from studies.upscaler.report import section_parts

    evaluation = UpscalerEvaluation(
        pipeline=load(model),
        data=data,
        clips=trial.clips,
        frames=trial.frames,
        steps=tuple(trial.curve),
        moving=trial.moving,
        moving_clips=trial.moving_clips,
        moving_frames=trial.moving_frames,
        seed=trial.seed,
        latent_noises=tuple(trial.levels),
        generated=trial.generated,
    )
    if sheet is not None:
        write_comparison_sheet(evaluation, sheet)
        say(sheet)
    with progress() as report:
        scores = evaluation.run(report)
    options = {"data": data, "model": model, **vars(trial), "sheet": sheet}
    write_results(output, _SECTION, [], options, section_parts(evaluation, scores), PROGRAM)

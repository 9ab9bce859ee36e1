"""`python -m studies decoders`: the video decoder against the frame-by-frame decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.evaluate.setup import (
    DEFAULT_PAGE,
    Data,
    Page,
    Seed,
    prepare_section,
    progress,
    write_results,
)
from magicvideo.cli.options import with_option_groups
from studies import PROGRAM

_SECTION = "decoders"
_ABOUT = (
    "{clips} held-out clips of {frames} frames at stride {stride}, on plain backgrounds, encoded "
    "once and decoded by both decoders. *Flicker*: mean absolute change from frame to frame of the "
    "pixels that never change in the real clip. *Temporal error*: mean absolute difference between "
    "the changes from frame to frame and those of the real clip. Both are in levels of 255. "
    "*Noise*: standard deviation of the noise that is added to the latents of every frame, "
    "relative to that of the latents, because generated latents contain errors. Intervals are "
    "bootstrapped over clips, which both decoders share."
)


@dataclass(frozen=True)
class DecoderOptions:
    """Clips and noise of the comparison."""

    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 60
    frames: Annotated[int, typer.Option(min=2, help="Frames per clip.")] = 16
    stride: Annotated[int, typer.Option(min=1, help="Distance between frames.")] = 1
    noise: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            help="Standard deviation of the noise on the latents; repeatable. [default: 0 and 0.1]",
        ),
    ] = None
    seed: Seed = 0

    @property
    def levels(self) -> list[float]:
        """Return the standard deviations of the noise."""
        return self.noise or [0.0, 0.1]


@with_option_groups
def decoders(
    image_vae: Annotated[
        Path, typer.Argument(help="Folder of the autoencoder with the frame decoder.")
    ],
    video_vae: Annotated[
        Path, typer.Argument(help="Folder of the autoencoder with the video decoder.")
    ],
    data: Data,
    trial: DecoderOptions,
    output: Page = DEFAULT_PAGE,
) -> None:
    """Compare two decoders on the same latents: flicker of static pixels, and accuracy.

    Example:
      python -m studies decoders image/vae video/vae --data data/emoji64
    """
    prepare_section(output, _SECTION)
    from magicvideo.atomic_io import sha256
    from magicvideo.data.dataset import ClipDataset
    from magicvideo.evaluation.provenance import provenance
    from magicvideo.evaluation.results_page import provenance_table
    from magicvideo.models.video_vae import load_autoencoder
    from studies.decoders import (
        WEIGHTS,
        DecoderComparison,
        compare_decoders,
        decoders_table,
    )

    first, second = load_autoencoder(image_vae), load_autoencoder(video_vae)
    dataset = ClipDataset(data, ("heldout",))
    with progress() as report:

        def compare(level: float) -> list[DecoderComparison]:
            return compare_decoders(
                first,
                second,
                dataset,
                trial.clips,
                num_frames=trial.frames,
                stride=trial.stride,
                noise=level,
                seed=trial.seed,
                on_clip=lambda done: report(f"noise {level:g}", done, trial.clips),
            )

        found = {level: compare(level) for level in trial.levels}
    options = {"data": data, **vars(trial), "noise": trial.levels}
    hashes = {
        name: sha256(folder / WEIGHTS)
        for name, folder in (("image autoencoder", image_vae), ("video autoencoder", video_vae))
    }
    parts = [
        _ABOUT.format(clips=trial.clips, frames=trial.frames, stride=trial.stride),
        decoders_table(found),
        provenance_table(provenance(hashes, {"data": data}, "cpu")),
    ]
    write_results(output, _SECTION, [image_vae, video_vae], options, parts, PROGRAM)

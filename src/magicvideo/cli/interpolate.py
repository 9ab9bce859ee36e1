"""`magicvideo interpolate`: new frames between those of any video."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import load_pipeline, make_console, progress_bar
from magicvideo.cli.generate_options import Device, Model, Overwrite
from magicvideo.errors import UserError

Footage = Annotated[
    Path, typer.Argument(help="A video file, a GIF or an animated WebP, of any length.")
]
FootageOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="A file (.mp4, .webm, .webp, .gif), or a name without a suffix for a folder of PNG "
        "frames. A GIF needs all frames in memory; the others take any number. By default a new "
        "file beside the video.",
    ),
]
FootageSeed = Annotated[int, typer.Option(min=0, help="Seed of the noise.")]
FootageSteps = Annotated[int | None, typer.Option(min=1, max=1000, help="Diffusion steps.")]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("interpolate")(interpolate)


def interpolate(
    footage: Footage,
    output: FootageOutput = None,
    prompt: Annotated[str, typer.Option(help="What it shows, in words.")] = "",
    seed: FootageSeed = 0,
    steps: FootageSteps = None,
    overwrite: Overwrite = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """Put new frames between the frames of a video: the same motion at a higher rate, no sound.

    Frames count as evenly spaced, at the video's mean rate.

    Examples:
      magicvideo interpolate clip.mp4
      magicvideo interpolate clip.gif --output smooth.mp4
    """
    target = choose_target(footage, output, "interpolated", overwrite=overwrite)
    from magicvideo.media.naming import storable
    from magicvideo.media.video_stream import open_footage, write_footage
    from magicvideo.pipelines.video_to_video import interpolate_video

    console = make_console()
    with console.status("Looking through the video"):
        clip = open_footage(footage)
    if output is None:
        target = storable(target, clip.height, clip.width)
    pipeline = load_pipeline(console, model, device)
    with progress_bar(console, "") as progress:
        made = interpolate_video(
            pipeline, clip, prompt=prompt, seed=seed, num_steps=steps, progress=progress
        )
        write_footage(made, target, overwrite=overwrite, progress=progress)
    typer.echo(
        f"{target} ({clip.num_frames} frames became {made.num_frames}, at {made.fps:g} a second)"
    )


def choose_target(footage: Path, output: Path | None, made: str, *, overwrite: bool) -> Path:
    """Return where what is made of a video goes, after checking that it can.

    Args:
        footage: The video.
        output: What was asked for; None for a name beside the video.
        made: What that name says of it.
        overwrite: Whether an existing output is replaced.

    Raises:
        UserError: If there is no such video, or the output exists or cannot be written.
    """
    from magicvideo.media.naming import beside
    from magicvideo.media.outputs import check_output

    if not footage.exists():
        raise UserError(f"{footage} cannot be used: there is no such file.")
    target = beside(footage, made) if output is None else output
    check_output(target, overwrite=overwrite)
    return target

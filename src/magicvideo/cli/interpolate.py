"""`magicvideo interpolate`: new frames between those of any video."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import load_pipeline, make_console, progress_bar
from magicvideo.cli.wishes import Device, Model, Overwrite

Footage = Annotated[Path, typer.Argument(help="A video file, a GIF or an animated WebP.")]
FootageOutput = Annotated[
    Path, typer.Option("--output", "-o", help="A file (.mp4, .webm, .webp, .gif) or a folder.")
]
FootageSeed = Annotated[int, typer.Option(min=0, help="Seed of the noise.")]
FootageSteps = Annotated[int | None, typer.Option(min=1, max=1000, help="Diffusion steps.")]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("interpolate")(interpolate)


def interpolate(
    footage: Footage,
    output: FootageOutput,
    prompt: Annotated[str, typer.Option(help="What it shows, in words.")] = "",
    seed: FootageSeed = 0,
    steps: FootageSteps = None,
    overwrite: Overwrite = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """Put new frames between the frames of a video: the same motion at a higher rate.

    Example:
      magicvideo interpolate clip.gif --output smooth.mp4
    """
    from magicvideo.generate.outputs import check_output

    check_output(output, overwrite=overwrite)
    from magicvideo.generate.footage import interpolate_footage, read_footage
    from magicvideo.generate.write import to_pixels, write_pixels

    frames, fps = read_footage(footage)
    console = make_console()
    pipeline = load_pipeline(console, model, device)
    with progress_bar(console, "") as progress:
        made = interpolate_footage(
            pipeline,
            frames,
            fps,
            prompt=prompt,
            seed=seed,
            num_steps=steps,
            progress=progress,
        )
        progress("writing", 0, 1)
        rate = fps * (len(made) - 1) / (len(frames) - 1)
        write_pixels(to_pixels(made), rate, "", output, overwrite=overwrite)
    typer.echo(f"{output} ({len(frames)} frames became {len(made)}, at {rate:g} a second)")

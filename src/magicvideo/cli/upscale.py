"""`magicvideo upscale`: any video at several times its side."""

import typer

from magicvideo.cli.console import load_pipeline, make_console, progress_bar
from magicvideo.cli.interpolate import Footage, FootageOutput, FootageSeed, FootageSteps
from magicvideo.cli.wishes import Device, Model, Overwrite


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("upscale")(upscale)


def upscale(
    footage: Footage,
    output: FootageOutput,
    seed: FootageSeed = 0,
    steps: FootageSteps = None,
    overwrite: Overwrite = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """Make a video larger by diffusion, frame by frame; large frames are made in tiles.

    Example:
      magicvideo upscale clip.gif --output large.mp4
    """
    from magicvideo.generate.outputs import check_output

    check_output(output, overwrite=overwrite)
    from magicvideo.generate.footage import read_footage, upscale_footage
    from magicvideo.generate.write import to_pixels, write_pixels

    frames, fps = read_footage(footage)
    console = make_console()
    pipeline = load_pipeline(console, model, device)
    with progress_bar(console, "") as progress:
        made = upscale_footage(pipeline, frames, seed=seed, num_steps=steps, progress=progress)
        progress("writing", 0, 1)
        write_pixels(to_pixels(made), fps, "", output, overwrite=overwrite)
    before, after = (f"{x.shape[-1]}x{x.shape[-2]}" for x in (frames, made))
    typer.echo(f"{output} ({before} became {after})")

"""`magicvideo upscale`: any video at several times its side."""

import typer

from magicvideo.cli.console import load_pipeline, make_console, progress_bar
from magicvideo.cli.generate_options import Device, Model, Overwrite
from magicvideo.cli.interpolate import (
    SeedOption,
    StepsOption,
    VideoArgument,
    VideoOutputOption,
    choose_target,
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("upscale")(upscale)


def upscale(
    video: VideoArgument,
    output: VideoOutputOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    overwrite: Overwrite = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """Make a video larger by diffusion, frame by frame; large frames are made in tiles, no sound.

    Examples:
      magicvideo upscale clip.mp4
      magicvideo upscale clip.gif --output large.mp4
    """
    target = choose_target(video, output, "upscaled", overwrite=overwrite)
    from magicvideo.media.video_stream import open_video_stream, write_video_stream
    from magicvideo.pipelines.video_to_video import upscale_video

    console = make_console()
    with console.status("Looking through the video"):
        clip = open_video_stream(video)
    pipeline = load_pipeline(console, model, device)
    with progress_bar(console, "") as progress:
        made = upscale_video(pipeline, clip, seed=seed, num_steps=steps, progress=progress)
        write_video_stream(made, target, overwrite=overwrite, progress=progress)
    before, after = (f"{one.width}x{one.height}" for one in (clip, made))
    typer.echo(f"{target} ({before} became {after})")

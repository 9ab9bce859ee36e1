"""`magicvideo interpolate` and `magicvideo upscale`: single stages on any video."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import Overwrite, make_console, progress_bar, say
from magicvideo.cli.options import Device, Model, load_pipeline
from magicvideo.errors import UserError
from magicvideo.imports import pause_garbage_collection

VideoFile = Annotated[
    Path, typer.Argument(help="A video file, a GIF or an animated WebP, of any length.")
]
VideoOutputFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="A file (.mp4, .webm, .webp, .gif), or a name without suffix for a folder of PNG "
        "frames. A GIF needs all frames in memory.",
        show_default="a new file next to the video",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the noise.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Diffusion steps.", show_default="the model's default"),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("interpolate")(interpolate)
    app.command("upscale")(upscale)


def interpolate(
    video: VideoFile,
    output: VideoOutputFile = None,
    prompt: Annotated[
        str, typer.Option(help="Description of the video.", show_default="nothing")
    ] = "",
    seed: Seed = 0,
    steps: Steps = None,
    overwrite: Overwrite = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """Insert new frames into a video: the same motion at a higher frame rate, without sound.

    Frames are assumed to be evenly spaced, at the video's mean frame rate.

    Examples:
      magicvideo interpolate clip.mp4
      magicvideo interpolate clip.gif --output smooth.mp4
    """
    target = choose_target(video, output, "interpolated", overwrite=overwrite)
    from magicvideo.atomic_io import lock_output
    from magicvideo.media.outputs import check_output, ensure_encodable_size
    from magicvideo.media.video_io import open_video_stream, write_video_stream

    with pause_garbage_collection():
        from magicvideo.pipelines.video_to_video import interpolate_video

    console = make_console()
    with console.status("Checking the video"):
        clip = open_video_stream(video)
    if output is None:
        target = ensure_encodable_size(target, clip.height, clip.width)
    with lock_output(target):
        check_output(target, overwrite=overwrite)  # another process may have finished it meanwhile
        pipeline = load_pipeline(console, model, device)
        with progress_bar(console, "") as progress:
            made = interpolate_video(
                pipeline, clip, prompt=prompt, seed=seed, num_steps=steps, progress=progress
            )
            write_video_stream(made, target, overwrite=overwrite, progress=progress)
    say(
        f"{target} ({clip.num_frames} frames became {made.num_frames}, at {made.fps:g} frames per "
        "second)"
    )


def upscale(
    video: VideoFile,
    output: VideoOutputFile = None,
    seed: Seed = 0,
    steps: Steps = None,
    overwrite: Overwrite = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """Upscale a video by diffusion; large frames are processed in tiles, without sound.

    Examples:
      magicvideo upscale clip.mp4
      magicvideo upscale clip.gif --output large.mp4
    """
    target = choose_target(video, output, "upscaled", overwrite=overwrite)
    from magicvideo.atomic_io import lock_output
    from magicvideo.media.outputs import check_output
    from magicvideo.media.video_io import open_video_stream, write_video_stream

    with pause_garbage_collection():
        from magicvideo.pipelines.video_to_video import upscale_video

    console = make_console()
    with console.status("Checking the video"):
        clip = open_video_stream(video)
    with lock_output(target):
        check_output(target, overwrite=overwrite)  # another process may have finished it meanwhile
        pipeline = load_pipeline(console, model, device)
        with progress_bar(console, "") as progress:
            made = upscale_video(pipeline, clip, seed=seed, num_steps=steps, progress=progress)
            write_video_stream(made, target, overwrite=overwrite, progress=progress)
    before, after = (f"{one.width}x{one.height}" for one in (clip, made))
    say(f"{target} ({before} became {after})")


def choose_target(video: Path, output: Path | None, made: str, *, overwrite: bool) -> Path:
    """Return the output path for a video, after checking it.

    Args:
        video: The video.
        output: The given path; None for a path next to the video.
        made: Suffix of the derived name.
        overwrite: Whether to replace an existing output.

    Raises:
        UserError: If the video does not exist, or the output exists or cannot be written.
    """
    from magicvideo.media.outputs import check_output, expand_home, sibling_path

    if not video.exists():
        raise UserError(f"{video} does not exist.")
    target = sibling_path(video, made) if output is None else expand_home(output)
    check_output(target, overwrite=overwrite)
    return target

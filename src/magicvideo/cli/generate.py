"""`magicvideo generate`: a prompt, or a picture, to a video file."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.console import load_pipeline, make_console, progress_bar
from magicvideo.cli.loras import Loras, load_loras, load_recorded_loras
from magicvideo.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.generate.pipeline import MagicVideoPipeline
    from magicvideo.generate.request import Request


Prompts = Annotated[
    list[str] | None, typer.Argument(help="What the video shows; several make several.")
]
PromptFile = Annotated[
    Path | None, typer.Option("--prompts", help="A text file of further prompts, one a line.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="A file (.mp4, .webm, .webp, .gif), a folder, or a pattern with {index}, {slug} and "
        "{seed}. By default a name made from the prompt and the seed.",
    ),
]
FormatName = Annotated[
    str | None,
    typer.Option("--format", help="mp4, webm, webp, gif, or png for a folder of frames."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Image = Annotated[
    Path | None, typer.Option(help="A picture as condition, in place of the text or beside it.")
]
Negative = Annotated[str | None, typer.Option(help="What guidance moves away from.")]
Seed = Annotated[
    int | None, typer.Option(help="Seed of the first video; the others count on from it.")
]
Steps = Annotated[int | None, typer.Option(help="Diffusion steps.")]
Guidance = Annotated[
    float | None, typer.Option(help="How closely to follow the prompt; 1 is no guidance.")
]
SchedulerName = Annotated[str | None, typer.Option(help="ddim, or dpm++ (DPM-Solver++).")]
NumFrames = Annotated[int | None, typer.Option(help="Number of key frames.")]
Fps = Annotated[float | None, typer.Option(help="Key frames a second.")]
Stages = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: keyframes, and any of interpolation and upscaler after it; by "
        "default all that the model has."
    ),
]
InterpolationSteps = Annotated[int | None, typer.Option(help="Diffusion steps between keys.")]
UpscalerSteps = Annotated[int | None, typer.Option(help="Diffusion steps of super-resolution.")]
Enlarge = Annotated[
    int | None,
    typer.Option(
        help="Whole factor that enlarges frames in files; by default small ones reach 256."
    ),
]
Model = Annotated[
    Path | None, typer.Option(help="A model folder; by default the model that is shipped.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or mps; by default cuda where there is one.")
]
Resume = Annotated[
    Path | None,
    typer.Option(help="Finish this output, whose latents were kept when it was cut short."),
]
Like = Annotated[Path | None, typer.Option(help="Make this video again, byte for byte.")]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("generate")(generate)


def generate(
    prompt: Prompts = None,
    prompts: PromptFile = None,
    output: Output = None,
    format: FormatName = None,
    overwrite: Overwrite = False,
    image: Image = None,
    negative_prompt: Negative = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: SchedulerName = None,
    frames: NumFrames = None,
    fps: Fps = None,
    stages: Stages = None,
    interpolation_steps: InterpolationSteps = None,
    upscaler_steps: UpscalerSteps = None,
    enlarge: Enlarge = None,
    model: Model = None,
    lora: Loras = None,
    device: Device = None,
    like: Like = None,
    resume: Resume = None,
) -> None:
    """Make a video from a prompt, or from a picture. Each file tells how to make it again.

    Examples:
      magicvideo generate "a woman surfing, blue background"
      magicvideo generate "a red heart beating" --output heart.gif --seed 7
      magicvideo generate "a cat" "a dog" --output "pets/{index}-{slug}.webp"
      magicvideo generate --image face.png --output face.mp4
      magicvideo generate "a cat" --stages keyframes
      magicvideo generate "a cat" --lora style.safetensors:0.8
      magicvideo generate --like heart.gif --output again.gif
      magicvideo generate --resume heart.gif
    """
    from magicvideo.generate.request import Settings, choose_seeds

    settings = Settings(
        negative_prompt=negative_prompt or "",
        num_frames=frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        enlarge=enlarge,
        stages=None if stages is None else tuple(name.strip() for name in stages.split(",")),
        interpolation_steps=interpolation_steps,
        upscaler_steps=upscaler_steps,
    )
    if like is not None or resume is not None:
        chosen = [prompt or None, prompts, image, seed, device, negative_prompt]
        chosen += [] if resume is None else [like, output, format, lora]
        if settings != Settings() or any(value is not None for value in chosen):
            name = "--like" if resume is None else "--resume"
            raise UserError(
                f"{name} takes the prompt and all settings from the file; leave the others out."
            )
        if resume is not None:
            _finish(resume, model, overwrite=overwrite)
        elif like is not None:
            _remake(like, output, format, model, lora or [], overwrite=overwrite)
        return
    texts, names = _texts(prompt or [], prompts, image)
    seeds = choose_seeds(seed, len(texts))
    paths = _outputs(output, names, seeds, format, overwrite=overwrite)
    console = make_console()
    pipeline = load_pipeline(console, model, device)
    load_loras(pipeline, lora or [])
    requests = pipeline.plan(texts, seeds, settings, image)
    _make(console, pipeline, requests, paths, model, lora or [], overwrite=overwrite)


def _remake(
    like: Path,
    output: Path | None,
    format: str | None,
    model: Path | None,
    loras: list[str],
    *,
    overwrite: bool,
) -> None:
    """Make a video again from what its file says."""
    from dataclasses import replace
    from importlib.metadata import version

    from magicvideo.generate.read import read_request

    request = read_request(like)
    name = request.picture.name if request.picture else request.prompt
    if output is None and format is None:
        format = "png" if like.is_dir() else like.suffix.lower().removeprefix(".")
    paths = _outputs(output, [name], [request.seed], format, overwrite=overwrite)
    import torch

    console = make_console()
    pipeline = load_pipeline(console, model, request.device)
    if request.version != version("magicvideo"):
        console.print(
            f"Hint: {like} was made by version {request.version}; bytes may differ.", markup=False
        )
    torch.set_num_threads(request.threads)
    load_recorded_loras(pipeline, request.loras, loras)  # threads decide the last bits here, too
    again = replace(request, version=version("magicvideo"))
    _make(console, pipeline, [again], paths, model, loras, overwrite=overwrite)


def _finish(output: Path, model: Path | None, *, overwrite: bool) -> None:
    """Make the rest of a video whose latents are there."""
    from magicvideo.generate.kept_latents import latents_path, read_latents
    from magicvideo.generate.outputs import check_output
    from magicvideo.generate.write import write_video

    kept = latents_path(output)
    request, latents = read_latents(kept)
    check_output(output, overwrite=overwrite)
    import torch

    console = make_console()
    pipeline = load_pipeline(console, model, request.device)
    pipeline.traits.check(request)
    torch.set_num_threads(request.threads)
    with progress_bar(console, "") as progress:
        video = pipeline.finish(request, latents.to(pipeline.device), progress)
        progress("writing", 0, 1)
        write_video(video.frames, request, output, overwrite=overwrite)
    kept.unlink()
    _tell(output, request, model, [use.name for use in request.loras])


def _texts(
    prompts: list[str], file: Path | None, image: Path | None
) -> tuple[list[str], list[str]]:
    """Return the prompts, and what each video is called after."""
    texts = prompts + (_read_prompts(file) if file else [])
    if image is not None and not texts:
        return [""], [image.stem]
    if not texts or not all(text.strip() for text in texts):
        raise UserError("The prompt is empty; say what the video should show.")
    return texts, texts


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; save it as such.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path} holds no prompt; write one a line.")
    return found


def _outputs(
    output: Path | None,
    names: list[str],
    seeds: list[int],
    format: str | None,
    *,
    overwrite: bool,
) -> list[Path]:
    """Return where the videos go, after checking that they can."""
    from magicvideo.generate.naming import output_paths
    from magicvideo.generate.outputs import check_output, check_writable

    paths = output_paths(output, names, seeds, format)
    for path in paths:
        if len(paths) > 1 and not path.parent.exists():  # it is made with the first video
            check_writable(path.parent.parent)
        else:
            check_output(path, overwrite=overwrite)
    return paths


def _make(
    console: "Console",
    pipeline: "MagicVideoPipeline",
    requests: list["Request"],
    paths: list[Path],
    model: Path | None,
    loras: list[str],
    *,
    overwrite: bool,
) -> None:
    """Make the videos one after the other; each is whole on the disk before the next begins."""
    from magicvideo.generate.kept_latents import latents_path
    from magicvideo.generate.write import write_video

    for number, (request, path) in enumerate(zip(requests, paths, strict=True), start=1):
        place = f"{number}/{len(requests)} " if len(requests) > 1 else ""
        kept = latents_path(path)
        with progress_bar(console, place) as progress:
            if len(paths) > 1:
                path.parent.mkdir(exist_ok=True)
            video = pipeline.generate(request, progress, keep=kept)
            progress("writing", 0, 1)
            write_video(video.frames, request, path, overwrite=overwrite)
        kept.unlink()
        _tell(path, request, model, loras)


def _tell(path: Path, request: "Request", model: Path | None, loras: list[str]) -> None:
    """Say where a video is and how to make it again."""
    again = ["magicvideo", "generate", "--like", str(path)]
    again += ["--model", str(model)] if model else []
    again += [word for lora in loras for word in ("--lora", lora)]
    again += ["--output", str(path.with_name(f"again-{path.name}"))]
    again += [] if path.suffix else ["--format", "png"]
    typer.echo(f"{path} (seed {request.seed})")
    typer.echo(f"Make it again: {shlex.join(again)}")

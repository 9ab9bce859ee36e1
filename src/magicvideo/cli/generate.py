"""`magicvideo generate`: a prompt, or a picture, to a video file."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.console import load_pipeline, make_console, progress_bar
from magicvideo.cli.decode_job import DecodeJob
from magicvideo.cli.generate_options import Choices, Networks, Target, Texts
from magicvideo.cli.lora_option import load_recorded_loras
from magicvideo.cli.memory_options import Memory, report_out_of_memory
from magicvideo.cli.option_groups import with_option_groups
from magicvideo.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.pipelines.request import Request
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline

Reproduce = Annotated[Path | None, typer.Option(help="Make this video again, byte for byte.")]
Resume = Annotated[
    Path | None,
    typer.Option(help="Finish this output, whose latents were kept when it was cut short."),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("generate")(generate)


@with_option_groups
def generate(
    texts: Texts,
    target: Target,
    choices: Choices,
    networks: Networks,
    memory: Memory,
    reproduce: Reproduce = None,
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
      magicvideo generate --reproduce heart.gif --output again.gif
      magicvideo generate --resume heart.gif --device cpu
    """
    from magicvideo.pipelines.request import resolve_seeds

    settings = choices.settings()
    half = DecodeJob(networks.model, networks.device, memory.bounds(), target.overwrite)
    told: list[object] = [texts.prompt or None, texts.prompts]
    told += [] if choices == Choices() else [choices]
    if resume is not None:
        _check_alone("--resume", *told, reproduce, target.output, target.format, networks.lora)
        _finish(resume, half)
        return
    if reproduce is not None:
        _check_alone("--reproduce", *told, networks.device)
        _remake(reproduce, target.for_copy_of(reproduce), networks, half)
        return
    prompts, names = texts.read(choices.image)
    seeds = resolve_seeds(choices.seed, len(prompts))
    paths = target.paths(names, seeds)
    console = make_console()
    pipeline = networks.load(console)
    requests = pipeline.build_requests(prompts, seeds, settings, choices.image)
    with report_out_of_memory("ask for fewer --frames, or take another --device"):
        _make(console, pipeline, requests, paths, half, networks.lora or [])


def _check_alone(name: str, *others: object) -> None:
    """Refuse options beside one that names a file which says all of them."""
    if any(value is not None for value in others):
        raise UserError(
            f"{name} takes the prompt and all settings from the file; leave the others out."
        )


def _remake(video: Path, target: Target, networks: Networks, half: DecodeJob) -> None:
    """Make a video again from what its file says."""
    from dataclasses import replace
    from importlib.metadata import version

    from magicvideo.pipelines.video import read_request

    request = read_request(video)
    name = request.image_condition.name if request.image_condition else request.prompt
    paths = target.paths([name], [request.seed])
    import torch

    console = make_console()
    pipeline = load_pipeline(console, networks.model, request.device)
    if request.version != version("magicvideo"):
        console.print(
            f"Hint: {video} was made by version {request.version}; bytes may differ.", markup=False
        )
    torch.set_num_threads(request.threads)
    # threads decide the last bits here, too
    load_recorded_loras(pipeline, request.loras, networks.lora or [])
    again = replace(request, version=version("magicvideo"))
    _make(console, pipeline, [again], paths, half, networks.lora or [])


def _finish(output: Path, half: DecodeJob) -> None:
    """Make the rest of a video whose latents are there."""
    from magicvideo.media.outputs import check_output
    from magicvideo.pipelines.latent_checkpoint import latents_path, read_latents

    request, latents = read_latents(latents_path(output))
    check_output(output, overwrite=half.overwrite)
    import torch

    console = make_console()
    pipeline = load_pipeline(console, half.model, half.device or request.device)
    pipeline.capabilities.validate(request)
    pipeline.capabilities.check_chunks(request, half.bounds)
    if pipeline.device.type != request.device:
        console.print(
            f"Hint: the latents are from {request.device}; made again there, the last bits differ.",
            markup=False,
        )
    torch.set_num_threads(request.threads)
    half.make(console, "", pipeline, request, latents.to(pipeline.device), output)
    _tell(output, request, half, [use.name for use in request.loras])


def _make(
    console: "Console",
    pipeline: "MagicVideoPipeline",
    requests: list["Request"],
    paths: list[Path],
    half: DecodeJob,
    loras: list[str],
) -> None:
    """Make the videos one after the other; each is whole on the disk before the next begins."""
    from magicvideo.pipelines.latent_checkpoint import latents_path, write_latents

    for request in requests:
        pipeline.capabilities.check_chunks(request, half.bounds)
    for number, (request, path) in enumerate(zip(requests, paths, strict=True), start=1):
        place = f"{number}/{len(requests)} " if len(requests) > 1 else ""
        if len(paths) > 1:
            path.parent.mkdir(exist_ok=True)
        with progress_bar(console, place) as progress:
            latents = pipeline.generate_latents(request, progress)
        write_latents(latents_path(path), latents, request)
        half.make(console, place, pipeline, request, latents, path)
        _tell(path, request, half, loras)


def _tell(path: Path, request: "Request", half: DecodeJob, loras: list[str]) -> None:
    """Say where a video is and how to make it again."""
    again = ["magicvideo", "generate", "--reproduce", str(path)]
    again += ["--model", str(half.model)] if half.model else []
    again += half.bounds.to_cli_args()  # they decide last bits
    again += [word for lora in loras for word in ("--lora", lora)]
    again += ["--output", str(path.with_name(f"again-{path.name}"))]
    again += [] if path.suffix else ["--format", "png"]
    typer.echo(f"{path} (seed {request.seed})")
    typer.echo(f"Make it again: {shlex.join(again)}")

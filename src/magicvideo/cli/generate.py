"""`magicvideo generate`: a prompt, or an image, to a video file."""

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.console import (
    Overwrite,
    is_out_of_memory,
    make_console,
    out_of_memory_error,
    progress_bar,
    report_out_of_memory,
    say,
)
from magicvideo.cli.options import Device, Model, load_pipeline, with_option_groups
from magicvideo.errors import UserError
from magicvideo.pipelines.request import (
    ChunkSizes,
    GenerationSettings,
    check_text,
    cli_flag,
)

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from magicvideo.media.video_io import Frame, Progress
    from magicvideo.pipelines.extend import ContinuedVideo
    from magicvideo.pipelines.request import LoraRef, Request
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline
    from magicvideo.shapes import Latents

Reproduce = Annotated[
    Path | None,
    typer.Option(help="Make the video in this file again, byte for byte.", show_default=False),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Finish this output, whose latents were kept when it was interrupted.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class PromptOptions:
    """The prompts: one video each."""

    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help="What the video shows; several prompts make several videos.", show_default=False
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Text file of further prompts, one a line; lines with # are comments.",
            show_default=False,
        ),
    ] = None

    def read(self, condition: "ConditionOptions") -> tuple[list[str], list[str]]:
        """Return the prompts, and what each video is named after.

        Raises:
            UserError: If one is empty or no text, or there is none and no image in its place.
        """
        from magicvideo.data.text_files import read_prompts

        texts = [*(self.prompt or []), *(read_prompts(self.prompts) if self.prompts else [])]
        if condition.extend is not None:
            from magicvideo.pipelines.extend import read_recorded_prompt

            if len(texts) > 1:
                raise UserError("One video is extended by one prompt; leave the others out.")
            texts = texts or [read_recorded_prompt(condition.extend)]
            return texts, [f"{condition.extend.stem} extended"]
        if condition.image is not None and not texts:
            return [""], [condition.image.stem]
        if not texts or not all(text.strip() for text in texts):
            raise UserError("The prompt is empty; describe what the video should show.")
        for text in texts:
            check_text("The prompt", text)
        return texts, texts


@dataclass(frozen=True)
class OutputOptions:
    """Where the videos go."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A file (.mp4, .webm, .webp, .gif), a folder, or a pattern with {index}, {slug} "
            "and {seed}.",
            show_default="made from the prompt and the seed",
        ),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="mp4, webm, webp, gif, or png for a folder of frames.",
            show_default="by the suffix, or mp4",
        ),
    ] = None
    overwrite: Overwrite = False

    def for_copy_of(self, video: Path) -> "OutputOptions":
        """Return these options, or if none is given a made name in the format of a video."""
        if self.output is not None or self.format is not None:
            return self
        suffix = video.suffix.lower().removeprefix(".")
        return replace(self, format="png" if video.is_dir() else suffix)

    @contextmanager
    def reserve(self, names: list[str], seeds: list[int]) -> Iterator[list[Path]]:
        """Give where the videos go, and keep other processes from writing there meanwhile.

        Raises:
            UserError: As `paths` does, and if another process makes one of them.
        """
        from magicvideo.atomic_io import lock_outputs
        from magicvideo.media.outputs import check_writable, output_paths

        paths = output_paths(self.output, names, seeds, self.format)
        for folder in {path.parent for path in paths}:
            is_new = len(paths) > 1 and not folder.exists()
            check_writable(folder.parent if is_new else folder)
        with lock_outputs(paths):
            yield self.paths(names, seeds)

    def paths(self, names: list[str], seeds: list[int]) -> list[Path]:
        """Return where the videos go, after checking that they can.

        Raises:
            UserError: If a name is not possible, taken or not writable.
        """
        from magicvideo.media.outputs import check_output, check_writable, output_paths
        from magicvideo.pipelines.video import LATENTS_SUFFIX, check_no_latents

        paths = output_paths(self.output, names, seeds, self.format)
        for path in paths:
            if len(paths) > 1 and not path.parent.exists():  # it is made with the first video
                check_writable(path.parent.parent)
            else:
                check_output(path, overwrite=self.overwrite, longest_suffix=LATENTS_SUFFIX)
            if not self.overwrite:
                check_no_latents(path)
        return paths


@dataclass(frozen=True)
class ConditionOptions:
    """What decides a video beside the prompt and the settings."""

    image: Annotated[
        Path | None,
        typer.Option(
            help="A picture that the video begins with, beside the prompt or in its place: scaled "
            "until it covers the frame, its centre cut out. Models that have not learned to "
            "continue given frames show something like it instead.",
            show_default=False,
        ),
    ] = None
    extend: Annotated[
        Path | None,
        typer.Option(
            help="A video to continue; the output has its frames and then new ones. Without a "
            "prompt or a seed, those in the file are taken.",
            show_default=False,
        ),
    ] = None
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Length of the video in seconds, in place of --frames; with --extend, of what is "
            "added.",
            show_default="as many key frames as the model makes at once",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the first video; the others count up from it.", show_default="random"
        ),
    ] = None

    def seeds(self, count: int) -> list[int]:
        """Return one seed for each video.

        Raises:
            UserError: If one is out of range.
        """
        from magicvideo.pipelines.request import resolve_seeds

        if self.extend is None or self.seed is not None:
            return resolve_seeds(self.seed, count)
        from magicvideo.pipelines.extend import read_recorded_seed

        return resolve_seeds(read_recorded_seed(self.extend), count)


@dataclass(frozen=True)
class ModelOptions:
    """What makes the videos, and on which device."""

    model: Model = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="FILE[:SCALE]",
            help="A LoRA (.safetensors) and its scale, 1 by default; several add up.",
            show_default="none",
        ),
    ] = None
    device: Device = None

    def load(self, console: "Console") -> "MagicVideoPipeline":
        """Return the model with the LoRAs in it.

        Raises:
            UserError: If one cannot be read or they do not fit, or the device is not there.
        """
        pipeline = load_pipeline(console, self.model, self.device)
        for text in self.lora or []:
            path, scale = _split_lora(text)
            pipeline.load_lora_weights(path, scale=1.0 if scale is None else scale)
        return pipeline


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate")(generate)


@with_option_groups
def generate(
    prompts: PromptOptions,
    output: OutputOptions,
    condition: ConditionOptions,
    settings: GenerationSettings,
    model: ModelOptions,
    chunks: ChunkSizes,
    reproduce: Reproduce = None,
    resume: Resume = None,
) -> None:
    """Make a video from a prompt or an image. Each file records how to make it again.

    Examples:
      magicvideo generate "a woman surfing, blue background"
      magicvideo generate "a red heart beating" --output heart.gif --seed 7
      magicvideo generate "a cat" "a dog" --output "pets/{index}-{slug}.webp"
      magicvideo generate --image face.png --output face.mp4
      magicvideo generate "a cat" --seconds 10
      magicvideo generate --extend cat.mp4 --seconds 10 --output longer.mp4
      magicvideo generate "a cat" --stages keyframes
      magicvideo generate "a cat" --lora style.safetensors:0.8
      magicvideo generate --reproduce heart.gif --output again.gif
      magicvideo generate --resume heart.gif --device cpu
    """
    job = DecodeJob(model.model, model.device, chunks, output.overwrite)
    given: list[object] = [prompts.prompt or None, prompts.prompts]
    given += [None if condition == ConditionOptions() else condition, settings.chosen() or None]
    if resume is not None:
        _check_alone("--resume", *given, reproduce, output.output, output.format, model.lora)
        _finish(resume, job)
        return
    if reproduce is not None:
        _check_alone("--reproduce", *given, model.device)
        _remake(reproduce, output.for_copy_of(reproduce), model, job)
        return
    texts, names = prompts.read(condition)
    seeds = condition.seeds(len(texts))
    with output.reserve(names, seeds) as paths:
        console = make_console()
        pipeline = model.load(console)
        settings, continued = pipeline.plan_length(
            settings, condition.seconds, condition.extend, condition.image
        )
        requests = pipeline.build_requests(texts, seeds, settings, condition.image)
        with report_out_of_memory("ask for fewer --frames, or take another --device"):
            _make(console, pipeline, requests, paths, job, model.lora or [], continued)


def _check_alone(name: str, *others: object) -> None:
    """Refuse options beside one that names a file which holds all of them."""
    if any(value is not None for value in others):
        raise UserError(
            f"{name} takes the prompt and all settings from the file; leave the others out."
        )


def _remake(video: Path, output: OutputOptions, model: ModelOptions, job: "DecodeJob") -> None:
    """Make a video again from what its file says."""
    from importlib.metadata import version

    from magicvideo.pipelines.video import read_request

    request = read_request(video)
    request.check_reproducible()
    name = request.image_condition.name if request.image_condition else request.prompt
    with output.reserve([name], [request.seed]) as paths:
        console = make_console()
        pipeline = load_pipeline(console, model.model, request.device)
        if request.version != version("magicvideo"):
            console.print(
                f"Hint: {video} was made by version {request.version}; bytes may differ.",
                markup=False,
            )
        _use_threads(request.threads)
        # threads decide the last bits here, too
        load_recorded_loras(pipeline, request.loras, model.lora or [])
        again = replace(request, version=version("magicvideo"))
        _make(console, pipeline, [again], paths, job, model.lora or [])


def _finish(output: Path, job: "DecodeJob") -> None:
    """Make the rest of a video whose latents are there."""
    from magicvideo.atomic_io import lock_output
    from magicvideo.media.outputs import check_output, check_writable
    from magicvideo.pipelines.video import output_of, read_latents

    output, latents_file = output_of(output)
    check_writable(output.parent)
    with lock_output(output):
        request, latents = read_latents(latents_file)
        check_output(output, overwrite=job.overwrite)
        console = make_console()
        pipeline = load_pipeline(console, job.model, job.device or request.device)
        pipeline.capabilities.validate(request)
        pipeline.capabilities.check_chunks(request, job.chunks)
        if pipeline.device.type != request.device:
            console.print(
                f"Hint: the latents are from {request.device}; made again there, the last bits "
                "differ.",
                markup=False,
            )
        _use_threads(request.threads)
        if pipeline.capabilities.is_long(request):
            job.make_long(console, "", pipeline, request, output, latents)
        else:
            job.make(console, "", pipeline, request, latents.to(pipeline.device), output)
        _print_result(output, request, job, [ref.name for ref in request.loras])


def _use_threads(threads: int) -> None:
    """Compute with as many threads as a video was made with, and no more than there are cores."""
    import os

    import torch

    torch.set_num_threads(min(threads, max(os.cpu_count() or 1, 1)))


def _make(
    console: "Console",
    pipeline: "MagicVideoPipeline",
    requests: list["Request"],
    paths: list[Path],
    job: "DecodeJob",
    loras: list[str],
    continued: "ContinuedVideo | None" = None,
) -> None:
    """Make the videos one after the other; each is whole on the disk before the next begins."""
    from magicvideo.pipelines.video import latents_path, write_latents

    for request in requests:
        pipeline.capabilities.check_chunks(request, job.chunks)
    for number, (request, path) in enumerate(zip(requests, paths, strict=True), start=1):
        place = f"{number}/{len(requests)} " if len(requests) > 1 else ""
        if continued is not None:
            job.extend(console, pipeline, request, continued, path)
            say(f"{path} (seed {request.seed})")
            continue
        if pipeline.capabilities.is_long(request):
            job.make_long(console, place, pipeline, request, path)
            _print_result(path, request, job, loras)
            continue
        with progress_bar(console, place) as progress:
            latents = pipeline.generate_latents(request, progress)
        write_latents(latents_path(path), latents, request)
        job.make(console, place, pipeline, request, latents, path)
        _print_result(path, request, job, loras)


def _print_result(path: Path, request: "Request", job: "DecodeJob", loras: list[str]) -> None:
    """Print where a video is and how to make it again."""
    again = ["magicvideo", "generate", "--reproduce", str(path)]
    again += ["--model", str(job.model)] if job.model else []
    again += job.chunks.to_cli_args()  # they decide last bits
    again += [word for lora in loras for word in ("--lora", lora)]
    again += ["--output", str(path.with_name(f"again-{path.name}"))]
    again += [] if path.suffix else ["--format", "png"]
    say(f"{path} (seed {request.seed})")
    say(f"Make it again: {shlex.join(again)}")


@dataclass(frozen=True)
class DecodeJob:
    """How latents become files: whatever ends it, one line says how to continue.

    Attributes:
        model: The model folder; None for the one of the package.
        device: The device that was named, if one was.
        chunks: What is in the networks at once.
        overwrite: Whether existing outputs are replaced.
    """

    model: Path | None
    device: str | None
    chunks: ChunkSizes
    overwrite: bool

    def make(
        self,
        console: "Console",
        place: str,
        pipeline: "MagicVideoPipeline",
        request: "Request",
        latents: "Latents",
        output: Path,
    ) -> None:
        """Write the video of latents that are kept beside its place, and delete them.

        Args:
            console: Shows the progress.
            place: Which of several videos this is, before what the progress says.
            pipeline: The model.
            request: What the latents were made from.
            latents: On the model's device.
            output: Where the video goes.

        Raises:
            UserError: If the file cannot be written, or memory ends.
        """
        from magicvideo.pipelines.video import latents_path, write_video

        with (
            self._say_how_to_continue(pipeline, request, [latents], output),
            progress_bar(console, place) as progress,
        ):
            video = pipeline.decode_and_upscale(request, latents, progress, self.chunks)
            progress("writing", 0, 1)
            write_video(video.frames, request, output, overwrite=self.overwrite)
        latents_path(output).unlink(missing_ok=True)

    def make_long(
        self,
        console: "Console",
        place: str,
        pipeline: "MagicVideoPipeline",
        request: "Request",
        output: Path,
        made: "Latents | None" = None,
    ) -> None:
        """Write a long video while its frames are made; memory holds its key latents alone.

        Args:
            console: Shows the progress.
            place: Which of several videos this is, before what the progress says.
            pipeline: The model.
            request: What to make.
            output: Where the video goes.
            made: Latents of key frames that an earlier attempt has made.

        Raises:
            UserError: If the file cannot be written, or memory ends.
        """
        from magicvideo.pipelines.video import latents_path

        kept = [] if made is None else [made]
        with (
            self._say_how_to_continue(pipeline, request, kept, output),
            progress_bar(console, place) as progress,
        ):
            frames = pipeline.iter_frames(
                request, progress, self.chunks, made=made, on_keys=kept.append
            )
            self._write_frames(frames, request.video_frames, request, output, progress)
        latents_path(output).unlink(missing_ok=True)

    def extend(
        self,
        console: "Console",
        pipeline: "MagicVideoPipeline",
        request: "Request",
        continued: "ContinuedVideo",
        output: Path,
    ) -> None:
        """Write a video and its continuation while new frames are made.

        Args:
            console: Shows the progress.
            pipeline: The model.
            request: What to make.
            continued: The video that is continued.
            output: Where the longer video goes.

        Raises:
            UserError: If the file cannot be written.
        """
        from itertools import chain

        from magicvideo.pipelines.text_to_video import CallInputs

        request = replace(request, unrecorded=("extend",))
        with progress_bar(console, "") as progress:
            new = pipeline.iter_frames(request, progress, self.chunks, CallInputs(extend=continued))
            added = (request.num_frames - continued.keys.shape[1]) * (request.num_inserted + 1)
            total = continued.num_frames + added
            frames = chain(continued.frames(), new)
            self._write_frames(frames, total, request, output, progress)

    def _write_frames(
        self,
        frames: "Iterable[Frame]",
        total: int,
        request: "Request",
        output: Path,
        progress: "Progress",
    ) -> None:
        from magicvideo.media.video_io import check_frames, to_uint8, write_pixels

        scale = request.output_scale
        check_frames(output, total, scale * request.height, scale * request.width)

        def pixels() -> "Iterator[np.ndarray]":
            for done, frame in enumerate(frames, start=1):
                yield to_uint8(frame[None], scale)[0]
                progress("writing", done, total)

        write_pixels(
            pixels(), request.video_fps, request.to_json(), output, overwrite=self.overwrite
        )

    @contextmanager
    def _say_how_to_continue(
        self,
        pipeline: "MagicVideoPipeline",
        request: "Request",
        latents: "list[Latents]",
        output: Path,
    ) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if not latents:
                raise
            _keep_latents(output, latents, request)
            if not is_out_of_memory(error):
                self._print_command(output, self.device, self.chunks)
                raise
            device = self.device
            chunks = pipeline.capabilities.reduce_memory(request, self.chunks)
            if chunks != self.chunks:
                changed = " and ".join(_changed_flags(self.chunks, chunks))
                advice = f"lower {changed} as above, or take another --device"
            elif pipeline.device.type != "cpu":
                device = "cpu"
                advice = "take --device cpu as above"
            else:
                advice = "close other programs, or take a machine with more"
            self._print_command(output, device, chunks)
            raise out_of_memory_error(error, advice) from None

    def _print_command(self, output: Path, device: str | None, chunks: ChunkSizes) -> None:
        words = ["magicvideo", "generate", "--resume", str(output)]
        words += ["--model", str(self.model)] if self.model else []
        words += ["--device", device] if device else []
        words += [*chunks.to_cli_args(), *(["--overwrite"] if self.overwrite else [])]
        say(f"The latents are kept; continue with: {shlex.join(words)}", err=True)


def _keep_latents(output: Path, latents: "list[Latents]", request: "Request") -> None:
    """Write the latents of a video, in parts one after the other, if they are not there yet."""
    import torch

    from magicvideo.pipelines.video import latents_path, write_latents

    whole = torch.cat([part.cpu() for part in latents], dim=1)
    if len(latents) > 1 or not latents_path(output).exists():
        write_latents(latents_path(output), whole, request)


def _changed_flags(before: ChunkSizes, after: ChunkSizes) -> list[str]:
    old = asdict(before)
    return [cli_flag(name) for name, value in asdict(after).items() if value != old[name]]


def load_recorded_loras(
    pipeline: "MagicVideoPipeline", recorded: tuple["LoraRef", ...], given: list[str]
) -> None:
    """Merge the LoRAs of a video into a loaded model, out of the files that were named.

    Raises:
        UserError: If a file is missing, foreign or another than it was, or its scale is.
    """
    from magicvideo.pipelines.lora import lora_hash

    files = {lora_hash(path): (path, scale) for path, scale in map(_split_lora, given)}
    for ref in recorded:
        if ref.sha256 not in files:
            raise UserError(
                f"The video was made with the LoRA {ref.name} of SHA-256 {ref.sha256}, which is "
                f"{'none of those named' if files else 'not named'}; name its file with --lora."
            )
        path, scale = files[ref.sha256]
        if scale not in (None, ref.scale):
            raise UserError(
                f"The scale of {path} is {scale:g} and was {ref.scale:g} in the video; leave the "
                "scale out."
            )
    known = {ref.sha256 for ref in recorded}
    if foreign := [path for key, (path, _) in files.items() if key not in known]:
        raise UserError(f"The video was made without the LoRA {foreign[0]}; leave it out.")
    for ref in recorded:
        pipeline.load_lora_weights(files[ref.sha256][0], scale=ref.scale)


def _split_lora(text: str) -> tuple[Path, float | None]:
    """Return the file and the scale of FILE[:SCALE]; a colon may be part of the file's name."""
    name, _, last = text.rpartition(":")
    if not name or Path(text).exists() or last.endswith(".safetensors"):
        return Path(text), None
    try:
        return Path(name), float(last)
    except ValueError:
        raise UserError(
            f"The scale {last!r} of the LoRA {name} is no number; write --lora {name}:0.8, or "
            "leave it out."
        ) from None

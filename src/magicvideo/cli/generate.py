"""`magicvideo generate`: generates videos from prompts or an image."""

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
    typer.Option(help="Reproduce the video in this file, byte for byte.", show_default=False),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Finish this interrupted output from its stored latents.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class PromptOptions:
    """The prompts, one per video."""

    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help="Description of the video; several prompts generate several videos.",
            show_default=False,
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Text file with further prompts, one per line; lines starting with # are "
            "comments.",
            show_default=False,
        ),
    ] = None

    def read(self, condition: "ConditionOptions") -> tuple[list[str], list[str]]:
        """Read the prompts, and the text that each video is named after.

        Raises:
            UserError: If one is empty or invalid, or there is neither a prompt nor an image.
        """
        from magicvideo.data.text_files import read_prompts

        texts = [*(self.prompt or []), *(read_prompts(self.prompts) if self.prompts else [])]
        if condition.extend is not None:
            from magicvideo.pipelines.extend import read_recorded_prompt

            if len(texts) > 1:
                raise UserError("--extend needs exactly one prompt; omit the others.")
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
    """Output paths."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A file (.mp4, .webm, .webp, .gif), a folder, or a pattern with {index}, {slug} "
            "and {seed}.",
            show_default="derived from prompt and seed",
        ),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="mp4, webm, webp, gif, or png for a folder of frames.",
            show_default="from the suffix, or mp4",
        ),
    ] = None
    overwrite: Overwrite = False

    def for_copy_of(self, video: Path) -> "OutputOptions":
        """Return these options; without any, a derived name with the format of a video."""
        if self.output is not None or self.format is not None:
            return self
        suffix = video.suffix.lower().removeprefix(".")
        return replace(self, format="png" if video.is_dir() else suffix)

    @contextmanager
    def reserve(self, names: list[str], seeds: list[int]) -> Iterator[list[Path]]:
        """Yield the output paths, locked against other processes.

        Raises:
            UserError: As `paths`, and if another process writes one of them.
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
        """Return the output paths, after checking them.

        Raises:
            UserError: If a path is invalid, exists or is not writable.
        """
        from magicvideo.media.outputs import check_output, check_writable, output_paths
        from magicvideo.pipelines.video import LATENTS_SUFFIX, check_no_latents

        paths = output_paths(self.output, names, seeds, self.format)
        for path in paths:
            if len(paths) > 1 and not path.parent.exists():  # created with the first video
                check_writable(path.parent.parent)
            else:
                check_output(path, overwrite=self.overwrite, longest_suffix=LATENTS_SUFFIX)
            if not self.overwrite:
                check_no_latents(path)
        return paths


@dataclass(frozen=True)
class ConditionOptions:
    """Conditions other than prompt and settings."""

    image: Annotated[
        Path | None,
        typer.Option(
            help="Image that the video starts from, with or without a prompt; scaled to cover the "
            "frame and center-cropped. Models trained without given frames use it as a condition "
            "instead.",
            show_default=False,
        ),
    ] = None
    extend: Annotated[
        Path | None,
        typer.Option(
            help="A video to continue; the output starts with its frames. Prompt and seed default "
            "to those in the file.",
            show_default=False,
        ),
    ] = None
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Length of the video in seconds, instead of --frames; with --extend, of the "
            "added part.",
            show_default="the model's number of key frames",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the first video; the others count up.", show_default="random"),
    ] = None

    def seeds(self, count: int) -> list[int]:
        """Return one seed per video.

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
    """The model and its device."""

    model: Model = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="FILE[:SCALE]",
            help="A LoRA (.safetensors) and its scale, 1 by default; may be repeated.",
            show_default="none",
        ),
    ] = None
    device: Device = None

    def load(self, console: "Console") -> "MagicVideoPipeline":
        """Load the model with the LoRAs.

        Raises:
            UserError: If a file is invalid or does not fit, or the device does not exist.
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
    """Generate a video from a prompt or an image. Each file records how to reproduce it.

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
        with report_out_of_memory("use fewer --frames, or another --device"):
            _make(console, pipeline, requests, paths, job, model.lora or [], continued)


def _check_alone(name: str, *others: object) -> None:
    """Refuse options next to one whose file contains all of them."""
    if any(value is not None for value in others):
        raise UserError(f"{name} uses the prompt and all settings of the file; omit the others.")


def _remake(video: Path, output: OutputOptions, model: ModelOptions, job: "DecodeJob") -> None:
    """Reproduce a video from its file."""
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
        # threads affect rounding here too
        load_recorded_loras(pipeline, request.loras, model.lora or [])
        again = replace(request, version=version("magicvideo"))
        _make(console, pipeline, [again], paths, job, model.lora or [])


def _finish(output: Path, job: "DecodeJob") -> None:
    """Finish a video from its latents."""
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
    """Use the number of threads of a video's request, at most the number of cores."""
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
    """Generate the videos one at a time; each is written before the next one starts."""
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
    """Print the path of a video and the command that reproduces it."""
    again = ["magicvideo", "generate", "--reproduce", str(path)]
    again += ["--model", str(job.model)] if job.model else []
    again += job.chunks.to_cli_args()  # they affect rounding
    again += [word for lora in loras for word in ("--lora", lora)]
    again += ["--output", str(path.with_name(f"again-{path.name}"))]
    again += [] if path.suffix else ["--format", "png"]
    say(f"{path} (seed {request.seed})")
    say(f"Make it again: {shlex.join(again)}")


@dataclass(frozen=True)
class DecodeJob:
    """Decodes latents to files; after any interruption it prints how to resume.

    Attributes:
        model: The model folder; None for the included model.
        device: The given device, if any.
        chunks: Chunk sizes of decoder and upscaler.
        overwrite: Whether to replace existing outputs.
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
        """Write the video of stored latents, and delete them.

        Args:
            console: Console for progress.
            place: Prefix of progress, with the index of the video.
            pipeline: The model.
            request: Request of the latents.
            latents: Latents on the model's device.
            output: Output path.

        Raises:
            UserError: If the file cannot be written, or memory is insufficient.
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
        """Write a long video while its frames are generated; only key latents stay in memory.

        Args:
            console: Console for progress.
            place: Prefix of progress, with the index of the video.
            pipeline: The model.
            request: The request.
            output: Output path.
            made: Latents of key frames of an earlier attempt.

        Raises:
            UserError: If the file cannot be written, or memory is insufficient.
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
        """Write a video and its continuation while new frames are generated.

        Ctrl-C while frames are made ends the video with those that are there.

        Args:
            console: Console for progress.
            pipeline: The model.
            request: The request.
            continued: The video to continue.
            output: Output path.

        Raises:
            KeyboardInterrupt: If it was interrupted; new frames, if any, are in the file.
            UserError: If the file cannot be written.
        """
        from magicvideo.pipelines.text_to_video import CallInputs

        request = replace(request, unrecorded=("extend",))
        interrupts: list[KeyboardInterrupt] = []

        def frames() -> "Iterator[Frame]":
            yield from continued.frames()
            added = 0
            try:
                for frame in new:
                    yield frame
                    added += 1
            except KeyboardInterrupt as interrupt:
                if not added:
                    raise
                interrupts.append(interrupt)

        with progress_bar(console, "") as progress:
            new = pipeline.iter_frames(request, progress, self.chunks, CallInputs(extend=continued))
            num_new = (request.num_frames - continued.keys.shape[1]) * (request.num_inserted + 1)
            total = continued.num_frames + num_new
            self._write_frames(frames(), total, request, output, progress)
        if interrupts:
            say(f"{output} ends with the frames made so far; extend it to continue.", err=True)
            raise interrupts[0]

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
                advice = f"reduce {changed} as above, or use another --device"
            elif pipeline.device.type != "cpu":
                device = "cpu"
                advice = "use --device cpu as above"
            else:
                advice = "close other programs, or use a machine with more memory"
            self._print_command(output, device, chunks)
            raise out_of_memory_error(error, advice) from None

    def _print_command(self, output: Path, device: str | None, chunks: ChunkSizes) -> None:
        words = ["magicvideo", "generate", "--resume", str(output)]
        words += ["--model", str(self.model)] if self.model else []
        words += ["--device", device] if device else []
        words += [*chunks.to_cli_args(), *(["--overwrite"] if self.overwrite else [])]
        say(f"The latents are stored; resume with: {shlex.join(words)}", err=True)


def _keep_latents(output: Path, latents: "list[Latents]", request: "Request") -> None:
    """Write the latents of a video, in several parts, unless they exist."""
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
    """Merge the LoRAs of a video into a model, from the given files.

    Raises:
        UserError: If a file is missing or unexpected, or file or scale differ.
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
                f"The scale of {path} is {scale:g}, but the video has {ref.scale:g}; omit the "
                "scale."
            )
    known = {ref.sha256 for ref in recorded}
    if foreign := [path for key, (path, _) in files.items() if key not in known]:
        raise UserError(f"The video was made without the LoRA {foreign[0]}; omit it.")
    for ref in recorded:
        pipeline.load_lora_weights(files[ref.sha256][0], scale=ref.scale)


def _split_lora(text: str) -> tuple[Path, float | None]:
    """Split FILE[:SCALE] into file and scale; the file name may contain a colon."""
    name, _, last = text.rpartition(":")
    if not name or Path(text).exists() or last.endswith(".safetensors"):
        return Path(text), None
    try:
        return Path(name), float(last)
    except ValueError:
        raise UserError(
            f"The scale {last!r} of the LoRA {name} is not a number; write --lora {name}:0.8, or "
            "leave it out."
        ) from None

"""What `magicvideo generate` can be told, in groups that go together through the command."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.console import load_pipeline
from magicvideo.cli.lora_option import Loras, load_loras
from magicvideo.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.pipelines.request import GenerationSettings
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Model = Annotated[
    Path | None, typer.Option(help="A model folder; by default the model that is shipped.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or mps; by default cuda where there is one.")
]


@dataclass(frozen=True)
class Texts:
    """The prompts: one video each."""

    prompt: Annotated[
        list[str] | None, typer.Argument(help="What the video shows; several make several.")
    ] = None
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A text file of further prompts, one a line.")
    ] = None

    def read(self, image: Path | None) -> tuple[list[str], list[str]]:
        """Return the prompts, and what each video is called after.

        Raises:
            UserError: If one is empty, or there is none and no picture in its place.
        """
        texts = [*(self.prompt or []), *(_read_prompts(self.prompts) if self.prompts else [])]
        if image is not None and not texts:
            return [""], [image.stem]
        if not texts or not all(text.strip() for text in texts):
            raise UserError("The prompt is empty; say what the video should show.")
        return texts, texts


@dataclass(frozen=True)
class Target:
    """Where the videos go."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A file (.mp4, .webm, .webp, .gif), a folder, or a pattern with {index}, {slug} "
            "and {seed}. By default a name made from the prompt and the seed.",
        ),
    ] = None
    format: Annotated[
        str | None,
        typer.Option("--format", help="mp4, webm, webp, gif, or png for a folder of frames."),
    ] = None
    overwrite: Overwrite = False

    def for_copy_of(self, video: Path) -> "Target":
        """Return this, or where nothing was said, a made name in the format of a video."""
        if self.output is not None or self.format is not None:
            return self
        suffix = video.suffix.lower().removeprefix(".")
        return replace(self, format="png" if video.is_dir() else suffix)

    def paths(self, names: list[str], seeds: list[int]) -> list[Path]:
        """Return where the videos go, after checking that they can.

        Raises:
            UserError: If a name is not possible, taken or not writable.
        """
        from magicvideo.media.outputs import check_output, check_writable, output_paths
        from magicvideo.pipelines.latent_checkpoint import check_no_latents

        paths = output_paths(self.output, names, seeds, self.format)
        for path in paths:
            if len(paths) > 1 and not path.parent.exists():  # it is made with the first video
                check_writable(path.parent.parent)
            else:
                check_output(path, overwrite=self.overwrite)
            if not self.overwrite:
                check_no_latents(path)
        return paths


@dataclass(frozen=True)
class Choices:
    """How the videos are made; None is the model's own default."""

    image: Annotated[
        Path | None, typer.Option(help="A picture as condition, in place of the text or beside it.")
    ] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance moves away from.")] = (
        None
    )
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first video; the others count on from it.")
    ] = None
    steps: Annotated[int | None, typer.Option(help="Diffusion steps.")] = None
    guidance: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; 1 is no guidance.")
    ] = None
    guidance_stop: Annotated[
        float | None,
        typer.Option(help="Share of the steps after which guidance ends; 1 guides all of them."),
    ] = None
    scheduler: Annotated[str | None, typer.Option(help="ddim, or dpm++ (DPM-Solver++).")] = None
    frames: Annotated[int | None, typer.Option(help="Number of key frames.")] = None
    fps: Annotated[float | None, typer.Option(help="Key frames a second.")] = None
    stages: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: keyframes, and any of interpolation and upscaler after it; by "
            "default all that the model has."
        ),
    ] = None
    interpolation_steps: Annotated[
        int | None, typer.Option(help="Diffusion steps between keys.")
    ] = None
    upscaler_steps: Annotated[
        int | None, typer.Option(help="Diffusion steps of super-resolution.")
    ] = None
    output_scale: Annotated[
        int | None,
        typer.Option(
            help="Whole factor that enlarges frames in files; by default small ones reach 256."
        ),
    ] = None

    def settings(self) -> "GenerationSettings":
        """Return all but the picture and the seed, checked.

        Raises:
            UserError: If a value is one that no model can work with.
        """
        from magicvideo.pipelines.request import GenerationSettings

        stages = None if self.stages is None else self.stages.split(",")
        return GenerationSettings(
            negative_prompt=self.negative_prompt or "",
            num_frames=self.frames,
            fps=self.fps,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            guidance_stop=self.guidance_stop,
            scheduler=self.scheduler,
            output_scale=self.output_scale,
            stages=None if stages is None else tuple(name.strip() for name in stages),
            interpolation_steps=self.interpolation_steps,
            upscaler_steps=self.upscaler_steps,
        )


@dataclass(frozen=True)
class Networks:
    """What makes the videos, and on which device."""

    model: Model = None
    lora: Loras = None
    device: Device = None

    def load(self, console: "Console") -> "MagicVideoPipeline":
        """Return the model with the LoRAs in it.

        Raises:
            UserError: If one cannot be read or they do not fit, or the device is not there.
        """
        pipeline = load_pipeline(console, self.model, self.device)
        load_loras(pipeline, self.lora or [])
        return pipeline


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

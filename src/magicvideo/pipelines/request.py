"""What is asked for: one video's settings, complete enough to make it again byte for byte."""

import base64
import json
import math
import secrets
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from magicvideo.errors import UserError

MAX_SEED = 2**63 - 1
MAX_LORA_SCALE = 10.0
STAGES = ("keyframes", "interpolation", "upscaler")
SCHEDULERS = ("ddim", "dpm++")  # what diffusion.sampler offers, known here without torch
_KEY = "magicvideo"  # the one key of the JSON object that travels in files
_RANDOM_SEEDS = 2**32  # few digits: a seed is read, typed and put into file names

Embedding: TypeAlias = Float32[np.ndarray, "e"]


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What a caller may choose beside prompts and seeds; `None` is the model's own default.

    Attributes:
        negative_prompt: What guidance moves away from.
        num_frames: Key frames of the video.
        fps: Key frames a second: the motion is paced by it. Interpolation multiplies it.
        num_inference_steps: Diffusion steps.
        guidance_scale: 1 is no guidance.
        guidance_stop: Share of the diffusion steps after which guidance ends; 1 guides all.
        scheduler: `ddim` or `dpm++`.
        output_scale: Factor by which files enlarge frames; by default the shorter side reaches 256.
        stages: What makes the video, in order: key frames, and what is to follow them; by default
            all stages that the model has.
        interpolation_steps: Diffusion steps of the interpolation.
        upscaler_steps: Diffusion steps of the super-resolution.
    """

    negative_prompt: str = ""
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_stop: float | None = None
    scheduler: str | None = None
    output_scale: int | None = None
    stages: tuple[str, ...] | None = None
    interpolation_steps: int | None = None
    upscaler_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that no model can work with."""
        _check_whole("The number of frames", self.num_frames, 1, 10_000)
        _check_number("The frame rate", self.fps, 1.0, 60.0)
        _check_whole("The number of steps", self.num_inference_steps, 1, 1000)
        _check_number("The guidance scale", self.guidance_scale, 0.0, 100.0)
        _check_number("The end of guidance", self.guidance_stop, 0.0, 1.0)
        _check_whole("The factor of enlargement", self.output_scale, 1, 32)
        _check_whole("The number of interpolation steps", self.interpolation_steps, 1, 1000)
        _check_whole("The number of upscaler steps", self.upscaler_steps, 1, 1000)
        if self.stages is not None:
            _check_stages(self.stages)
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise UserError(
                f"The scheduler {self.scheduler!r} is not known; choose {' or '.join(SCHEDULERS)}."
            )
        if self.negative_prompt and self.guidance_scale == 1:
            raise UserError(
                "A negative prompt works through guidance, and a guidance scale of 1 is none; "
                "raise the scale or leave the negative prompt out."
            )


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class ImageCondition:
    """A picture as condition: what its CLIP embedding keeps of it.

    Attributes:
        name: Name of the picture's file, for people.
        embedding: The embedding's float32 values, little-endian, in base64.
    """

    name: str
    embedding: str

    @classmethod
    def of(cls, name: str, embedding: Embedding) -> "ImageCondition":
        """Return the picture with an embedding."""
        return cls(
            name=name, embedding=base64.b64encode(embedding.astype("<f4").tobytes()).decode()
        )

    def values(self) -> Embedding:
        """Return the embedding.

        Raises:
            UserError: If the text is no embedding.
        """
        try:
            return np.frombuffer(base64.b64decode(self.embedding, validate=True), "<f4").copy()
        except ValueError:
            raise UserError(
                "The embedding of the picture is damaged; give the picture itself with --image."
            ) from None


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class LoraRef:
    """A LoRA that takes part in a video.

    Attributes:
        name: Name of its file, for people.
        sha256: Its identity, as `generate.lora.lora_hash` returns it.
        scale: Factor of its updates.
    """

    name: str
    sha256: str
    scale: float

    def __post_init__(self) -> None:
        """Refuse a scale that cannot be meant."""
        _check_number("The scale of the LoRA", self.scale, -MAX_LORA_SCALE, MAX_LORA_SCALE)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Request:
    """All that decides the bytes of one video; it travels in the file.

    Attributes:
        prompt: Text; may be empty beside a picture.
        negative_prompt: What guidance moves away from.
        image_condition: A condition beside the text or in its place, or None.
        seed: Seed of the noise.
        num_frames: Key frames of the video.
        fps: Key frames a second.
        num_inference_steps: Diffusion steps of the key frames.
        guidance_scale: 1 is no guidance.
        scheduler: `ddim` or `dpm++`, in all stages.
        output_scale: Factor by which files output_scale the frames.
        stages: What makes the video, in order.
        num_inserted: New frames between two key frames.
        interpolation_steps: Diffusion steps of the interpolation.
        upscaler_steps: Diffusion steps of the super-resolution.
        model: Hash of the model folder, or None for a model that was never saved.
        device: Kind of device, such as `cpu`: each rounds in its own way.
        threads: CPU threads, which decide the order of sums and with it the last bits.
        version: Version of magicvideo.
        loras: What was merged into the model's weights, in order.
        guidance_stop: Share of the key frames' diffusion steps after which guidance ends.
    """

    prompt: str
    negative_prompt: str
    image_condition: ImageCondition | None
    seed: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    output_scale: int
    stages: tuple[str, ...]
    num_inserted: int
    interpolation_steps: int
    upscaler_steps: int
    model: str | None
    device: str
    threads: int
    version: str
    loras: tuple[LoraRef, ...] = ()
    guidance_stop: float = 1.0  # files of versions without it were guided to the end

    def __post_init__(self) -> None:
        """Refuse values that cannot be."""
        _check_whole("The seed", self.seed, 0, MAX_SEED)
        _check_whole("The number of threads", self.threads, 1, 4096)
        _check_whole("The number of inserted frames", self.num_inserted, 0, 1000)
        if self.image_condition is None and not self.prompt.strip():
            raise UserError("The prompt is empty; say what the video should show.")
        GenerationSettings(
            negative_prompt=self.negative_prompt,
            num_frames=self.num_frames,
            fps=self.fps,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            guidance_stop=self.guidance_stop,
            scheduler=self.scheduler,
            output_scale=self.output_scale,
            stages=self.stages,
            interpolation_steps=self.interpolation_steps,
            upscaler_steps=self.upscaler_steps,
        )

    @property
    def video_fps(self) -> float:
        """Return the frames a second of the finished video."""
        return self.fps * (self.num_inserted + 1)

    @property
    def video_frames(self) -> int:
        """Return the number of frames of the finished video."""
        return self.num_frames + (self.num_frames - 1) * self.num_inserted

    def to_json(self) -> str:
        """Return the request as one line of ASCII, the text that travels in files."""
        return json.dumps({_KEY: asdict(self)}, sort_keys=True)


def from_json(text: str) -> Request | None:
    """Return the request that a file's text holds, or None if the text is not a request.

    Raises:
        UserError: If it is a request that this version cannot read.
    """
    try:
        holder = json.loads(text)
    except ValueError:
        return None
    if not isinstance(holder, dict) or _KEY not in holder:
        return None
    try:
        return TypeAdapter(Request).validate_json(json.dumps(holder[_KEY]), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"The request in the file cannot be read ({place}: {first['msg']}); "
            "a newer version of magicvideo may have written it."
        ) from None


def resolve_seeds(seed: int | list[int] | None, count: int) -> list[int]:
    """Return one seed a video: those given, a row that starts at the one given, or random ones.

    Raises:
        UserError: If the list has another length, or a seed is not in [0, 2^63).
    """
    if seed is None:
        seed = secrets.randbelow(_RANDOM_SEEDS)
    seeds = seed if isinstance(seed, list) else [seed + index for index in range(count)]
    for value in seeds:
        _check_whole("The seed", value, 0, MAX_SEED)
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds were given for {count} videos; give one for each.")
    return seeds


def _check_stages(stages: tuple[str, ...]) -> None:
    allowed = ", ".join(STAGES)
    if unknown := [name for name in stages if name not in STAGES]:
        raise UserError(f"The stage {unknown[0]!r} is not known; stages are {allowed}.")
    if stages != tuple(name for name in STAGES if name in stages) or stages[:1] != STAGES[:1]:
        raise UserError(
            f"The stages {', '.join(stages) or '(none)'} are no sequence that makes a video; it "
            f"starts with keyframes and goes on in the order {allowed}."
        )


def _check_whole(what: str, value: int | None, least: int, most: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{what} is {value}; it must be a whole number from {least} to {most}.")


def _check_number(what: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (math.isfinite(value) and least <= value <= most):
        raise UserError(f"{what} is {value:g}; it must be a number from {least:g} to {most:g}.")

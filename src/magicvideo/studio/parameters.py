"""What a client can ask for, checked before any work."""

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

MAX_SEED = 2**63 - 1
_SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
_LORA = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(:-?[0-9]{1,2}(\.[0-9]{1,4})?)?$"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("it must be a number")
    return value


def _plain_text(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("it must hold no control characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("it must be valid Unicode")
    return value


_Whole = Annotated[int, BeforeValidator(_no_truth_value)]
_Number = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1_000_000), AfterValidator(_plain_text)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_plain_text)]
Lora = Annotated[str, StringConstraints(pattern=_LORA)]


class VideoParameters(BaseModel):
    """Fields of a request for a video; those left out are the model's own defaults.

    Attributes:
        prompt: What the video shows; may be empty beside a picture.
        model: Name of the model.
        seconds: Length of the video.
        size: Width and height of the frames, such as `256x256`.
        seed: Of the noise; by default a random one, which the answer contains.
        steps: Diffusion steps of the key frames.
        guidance: How closely to follow the prompt; 1 disables guidance.
        guidance_stop: Fraction of the steps after which guidance ends.
        scheduler: Name of a sampler, such as `ddim` or `dpm++`.
        negative_prompt: What guidance moves away from.
        frames: Number of key frames.
        fps: Key frames per second, by which the network paces the motion.
        motion: How much moves: 0 is the mean of the training clips, 1 a standard deviation more.
        stages: Comma-separated: keyframes, interpolation, upscaler.
        interpolation_steps: Diffusion steps of the interpolation.
        upscaler_steps: Diffusion steps of the super-resolution.
        format: File format.
        lora: LoRA files of the server by name, each with an optional scale: `style:0.8`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    prompt: Text
    model: Name | None = None
    seconds: Annotated[_Number, Field(gt=0, le=3600)] | None = None
    size: Annotated[str, StringConstraints(pattern=_SIZE)] | None = None
    seed: Annotated[_Whole, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[_Whole, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[_Number, Field(ge=0, le=100)] | None = None
    guidance_stop: Annotated[_Number, Field(ge=0, le=1)] | None = None
    scheduler: Annotated[str, StringConstraints(pattern=r"^[a-z0-9+_-]{1,20}$")] | None = None
    negative_prompt: Text | None = None
    frames: Annotated[_Whole, Field(ge=1, le=10_000)] | None = None
    fps: Annotated[_Number, Field(ge=1, le=60)] | None = None
    motion: Annotated[_Number, Field(ge=-4, le=4)] | None = None
    stages: Annotated[str, StringConstraints(pattern=r"^[a-z]+(,[a-z]+){0,2}$")] | None = None
    interpolation_steps: Annotated[_Whole, Field(ge=1, le=1000)] | None = None
    upscaler_steps: Annotated[_Whole, Field(ge=1, le=1000)] | None = None
    format: Literal["mp4", "webm", "webp", "gif"] = "mp4"
    lora: Annotated[list[Lora], Field(max_length=8)] | None = None

    def loras(self) -> list[tuple[str, float]]:
        """Return names and scales of the LoRAs."""
        parts = (entry.partition(":") for entry in self.lora or [])
        return [(name, float(scale or 1.0)) for name, _, scale in parts]

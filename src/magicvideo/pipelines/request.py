"""Generation settings, and requests, which reproduce one video.

Every setting is defined once, in `GenerationSettings`, with its type, range, help text and option.
The settings of a request, the defaults of a model and the options of the command line are derived
from it. The module imports no large library, so that `--help` is fast.
"""

import dataclasses
import json
import math
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, SupportsIndex, TypeAlias, TypeVar

from magicvideo.errors import UserError
from magicvideo.limits import parse_json
from magicvideo.printable import printable

MAX_SEED = 2**63 - 1
MAX_LORA_SCALE = 10.0
MAX_FRAMES = 10_000  # key frames
STAGES = ("keyframes", "interpolation", "upscaler")
SCHEDULERS = ("ddim", "dpm++", "unipc", "euler", "lcm", "flow_map")
_KEY = "magicvideo"  # key of the JSON object stored in video files
_RANDOM_SEEDS = 2**32  # short, because seeds are typed and appear in file names

T = TypeVar("T")
Number: TypeAlias = int | float


def setting(
    label: str,
    help: str,
    *,
    flag: str | None = None,
    lowest: Number | None = None,
    highest: Number | None = None,
    default: object = None,
    usual: str | None = "the model's own",
    optional: bool = False,
) -> Any:  # noqa: ANN401 - as dataclasses.field
    """Return the dataclass field of a generation setting.

    Args:
        label: Name of the setting in error messages.
        help: Help text of the option.
        flag: The option, if it is not derived from the field's name.
        lowest: Minimum of a number.
        highest: Maximum of a number.
        default: Value of the field; None for the model's default.
        usual: Default shown in the help, or None for the value itself.
        optional: Whether it may be None in a complete request.
    """
    metadata = {
        "label": label,
        "help": help,
        "flag": flag,
        "lowest": lowest,
        "highest": highest,
        "usual": usual,
        "optional": optional,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of a generation besides prompts and seeds; None is the model's default.

    The fields hold description and range of each setting. `from_values` also accepts numbers and
    sequences of other types, such as NumPy's.

    Raises:
        UserError: If a value is out of its range.
    """

    negative_prompt: str | None = setting(
        "The negative prompt", "Text that guidance moves away from.", usual="none"
    )
    num_inference_steps: int | None = setting(
        "The number of steps", "Diffusion steps.", flag="--steps", lowest=1, highest=1000
    )
    guidance_scale: float | None = setting(
        "The guidance scale",
        "How closely to follow the prompt; 1 disables guidance.",
        flag="--guidance",
        lowest=0.0,
        highest=100.0,
    )
    guidance_stop: float | None = setting(
        "The end of guidance",
        "Fraction of the steps that use guidance; 1 for all.",
        lowest=0.0,
        highest=1.0,
    )
    scheduler: str | None = setting(
        "The scheduler",
        "ddim, dpm++ (DPM-Solver++), unipc, euler or lcm.",
    )
    num_frames: int | None = setting(
        "The number of frames",
        "Number of key frames; interpolation inserts further frames between them.",
        flag="--frames",
        lowest=1,
        highest=MAX_FRAMES,
        usual="as many as in training",
    )
    fps: float | None = setting(
        "The frame rate",
        "Key frames per second; the network adapts the motion to it.",
        lowest=1.0,
        highest=60.0,
    )
    motion: float | None = setting(
        "The motion",
        "Amount of motion, in standard deviations from the mean of the training clips.",
        lowest=-4.0,
        highest=4.0,
        usual="not conditioned",
        optional=True,
    )
    overlap: int | None = setting(
        "The overlap",
        "Key frames shared by consecutive windows of a long video.",
        lowest=1,
        highest=1000,
        usual="a quarter of the model's frames",
        optional=True,
    )
    height: int | None = setting(
        "The height",
        "Height of the video in pixels, before --output-scale.",
        lowest=8,
        highest=8192,
        usual="as in training",
    )
    width: int | None = setting(
        "The width",
        "Width of the video in pixels, before --output-scale.",
        lowest=8,
        highest=8192,
        usual="as in training",
    )
    stages: tuple[str, ...] | None = setting(
        "The stages",
        "Comma-separated: keyframes, then any of interpolation and upscaler.",
        usual="all stages of the model",
    )
    interpolation_steps: int | None = setting(
        "The number of interpolation steps",
        "Diffusion steps of the interpolation.",
        lowest=1,
        highest=1000,
    )
    upscaler_steps: int | None = setting(
        "The number of upscaler steps",
        "Diffusion steps of the super-resolution.",
        lowest=1,
        highest=1000,
    )
    output_scale: int | None = setting(
        "The output scale",
        "Integer factor by which the frames are enlarged in the file.",
        usual="the shorter side reaches 256 pixels",
        lowest=1,
        highest=32,
    )

    def __post_init__(self) -> None:
        """Convert numbers and sequences to plain types and check their ranges."""
        for one in fields(GenerationSettings):
            value = getattr(self, one.name)
            if value is not None:
                object.__setattr__(self, one.name, _checked(one, value))
        if self.negative_prompt and self.guidance_scale == 1:
            raise UserError(
                "A negative prompt needs guidance, which a guidance scale of 1 disables; raise the "
                "scale or omit the negative prompt."
            )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "GenerationSettings":
        """Build settings from values of any integer, number or sequence type, by name.

        Raises:
            UserError: If a value is out of its range.
        """
        plain: dict[str, Any] = {
            one.name: _checked(one, values[one.name])
            for one in fields(GenerationSettings)
            if values.get(one.name) is not None
        }
        return cls(**plain)

    def chosen(self) -> dict[str, Any]:
        """Return the settings that are not None, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(GenerationSettings)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, defaults: "GenerationSettings") -> "GenerationSettings":
        """Return these settings, with defaults where they are None."""
        return GenerationSettings(**{**defaults.chosen(), **self.chosen()})


@dataclass(frozen=True, kw_only=True)
class ChunkSizes:
    """How many frames or pixels decoder and upscaler process at once, which bounds memory.

    Up to rounding, a video does not depend on it.

    Raises:
        UserError: If a value is below 1.
    """

    decoder_frames: int = setting(
        "--decoder-frames",
        "Frames decoded at once; fewer need less memory.",
        lowest=1,
        highest=100_000,
        default=16,
        usual=None,
    )
    upscaler_frames: int = setting(
        "--upscaler-frames",
        "Frames upscaled at once; fewer need less memory.",
        lowest=1,
        highest=100_000,
        default=4,
        usual=None,
    )
    upscaler_tile: int = setting(
        "--upscaler-tile",
        "Longest side of an upscaler tile, in pixels of the small frames.",
        lowest=1,
        highest=100_000,
        default=256,
        usual=None,
    )

    def __post_init__(self) -> None:
        """Check that sizes are positive."""
        for one in fields(self):
            value = getattr(self, one.name)
            if value < 1:
                raise UserError(f"{cli_flag(one.name)} is {value}; it must be 1 or more.")

    def to_cli_args(self) -> list[str]:
        """Return the command-line options for sizes that differ from the defaults."""
        usual = asdict(DEFAULT_CHUNKS)
        chosen = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return [word for name, value in chosen.items() for word in (cli_flag(name), str(value))]


DEFAULT_CHUNKS = ChunkSizes()


def cli_flag(name: str) -> str:
    """Return the default option name of a setting."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class ImageCondition:
    """The CLIP embedding of an image that a video is conditioned on.

    Attributes:
        name: File name of the image, for display.
        embedding: Base64 of its float32 values, little-endian; `image_condition.embedding_of`
            decodes them.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    embedding: str


@dataclass(frozen=True, kw_only=True)
class FirstFrame:
    """The image that a video starts from, encoded.

    Attributes:
        name: File name of the image, for display.
        latents: Base64 of the float32 values of its latents `c h w`, little-endian;
            `image_condition.latents_of` decodes them.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    latents: str


@dataclass(frozen=True, kw_only=True)
class LoraRef:
    """A LoRA merged into the model for a video.

    Attributes:
        name: File name, for display.
        sha256: Its hash, from `pipelines.lora.lora_hash`.
        scale: Factor applied to its weights.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    sha256: str
    scale: float

    def __post_init__(self) -> None:
        """Check the scale."""
        if not (math.isfinite(self.scale) and abs(self.scale) <= MAX_LORA_SCALE):
            raise UserError(
                f"The scale of the LoRA is {self.scale:g}; it must be a number from "
                f"{-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}."
            )


@dataclass(frozen=True, kw_only=True)
class Request(GenerationSettings):
    """Everything that determines one video; it is stored in the video file.

    All settings of `GenerationSettings` are set here, except `motion` if the video is not
    conditioned on it, and `overlap` if the video has one window.

    Attributes:
        prompt: Text; may be empty if there is an image.
        image_condition: An image, in addition to the text or instead of it, or None.
        first_frame: The image that the video starts from, or None.
        seed: Seed of the noise.
        num_inserted: New frames between two key frames.
        scheduler_options: Scheduler configuration that differs from the model's.
        model: Hash of the model folder, or None for a model that was never saved.
        device: Device type, such as `cpu`; rounding depends on it.
        threads: Number of CPU threads; the order of summation depends on it.
        version: Version of magicvideo.
        loras: Merged LoRAs, in order.
        unrecorded: Names of inputs that affected the video and are not stored in the request, such
            as `latents`. The request alone then cannot reproduce the video.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    guidance_stop: float
    scheduler: str
    num_frames: int
    fps: float
    height: int
    width: int
    stages: tuple[str, ...]
    interpolation_steps: int
    upscaler_steps: int
    output_scale: int
    prompt: str
    image_condition: ImageCondition | None
    seed: int
    num_inserted: int
    model: str | None
    device: str
    threads: int
    version: str
    scheduler_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    loras: tuple[LoraRef, ...] = ()
    unrecorded: tuple[str, ...] = ()
    first_frame: FirstFrame | None = None

    def __post_init__(self) -> None:
        """Check all values."""
        super().__post_init__()
        for one in fields(GenerationSettings):
            if getattr(self, one.name) is None and not one.metadata["optional"]:
                raise UserError(f"The request has no value for {one.name}.")
        check_integer("The seed", self.seed, 0, MAX_SEED)
        check_integer("The number of threads", self.threads, 1, 4096)
        check_integer("The number of inserted frames", self.num_inserted, 0, 1000)
        pictures = (self.image_condition, self.first_frame)
        has_condition = any(pictures) or "prompt_embeds" in self.unrecorded
        check_text("The prompt", self.prompt)
        if not has_condition and not self.prompt.strip():
            raise UserError("The prompt is empty; describe what the video should show.")

    @property
    def video_fps(self) -> float:
        """Return the frames per second of the finished video."""
        return self.fps * (self.num_inserted + 1)

    @property
    def video_frames(self) -> int:
        """Return the number of frames of the finished video."""
        return self.num_frames + (self.num_frames - 1) * self.num_inserted

    def check_reproducible(self) -> None:
        """Raise an error if the request does not store all inputs of its video.

        Raises:
            UserError: If inputs are missing. The message names them.
        """
        if self.unrecorded:
            raise UserError(
                f"The video was made with {', '.join(self.unrecorded)}, which its file does not "
                "hold; make it again from Python with the same inputs."
            )

    def to_json(self) -> str:
        """Serialize the request as one line of ASCII, the text stored in video files."""
        return json.dumps({_KEY: asdict(self)}, sort_keys=True)


def request_from_json(text: str) -> Request | None:
    """Parse the text of a video file; return None if it is not a request.

    Raises:
        UserError: If this version cannot read the request.
    """
    try:
        holder = parse_json(text)
    except ValueError:
        return None
    if not isinstance(holder, dict) or _KEY not in holder:
        return None
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Request).validate_json(json.dumps(holder[_KEY]), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"The request in the file cannot be read ({place}: {first['msg']}); "
            "another version of magicvideo may have written it."
        ) from None


def resolve_seeds(seed: SupportsIndex | Iterable[SupportsIndex] | None, count: int) -> list[int]:
    """Return one seed for each video.

    Args:
        seed: One seed per video; or the first seed, from which the others count up; or None for
            random seeds. NumPy integers and arrays are accepted.
        count: Number of videos.

    Raises:
        UserError: If the sequence has another length, or a seed is not in [0, 2^63).
    """
    if seed is None:
        seed = secrets.randbelow(_RANDOM_SEEDS)
    given: list[Any] = list(seed) if isinstance(seed, Iterable) else [seed]
    seeds = [check_integer("The seed", value, 0, MAX_SEED) for value in given]
    if not isinstance(seed, Iterable):
        seeds = [check_integer("The seed", seeds[0] + k, 0, MAX_SEED) for k in range(count)]
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds were given for {count} videos; give one per video.")
    return seeds


def check_text(label: str, text: str) -> None:
    """Raise an error if a text has invalid UTF-8 bytes (lone surrogates in Python).

    Raises:
        UserError: If it has.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{label} contains bytes that are not UTF-8 ({printable(text)}); type it in UTF-8 or "
            "give a text file in UTF-8 with --prompts."
        ) from None


def check_integer(label: str, value: object, lowest: Number, highest: Number) -> int:
    """Convert a value to a plain integer.

    Raises:
        UserError: If it is not an integer or out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not lowest <= number <= highest:
        raise UserError(f"{label} is {value}; it must be an integer from {lowest} to {highest}.")
    return number


def _checked(one: "dataclasses.Field[Any]", value: Any) -> object:  # noqa: ANN401
    """Convert the value of a setting to its plain type and check its range."""
    label, lowest, highest = (one.metadata[key] for key in ("label", "lowest", "highest"))
    if one.name == "stages":
        return _check_stages(value)
    if lowest is None:
        if one.name == "negative_prompt":
            check_text(label, value)
        elif value not in SCHEDULERS:
            raise UserError(f"Unknown scheduler {value!r}; choose one of {', '.join(SCHEDULERS)}.")
        return value
    if isinstance(lowest, int):
        return check_integer(label, value, lowest, highest)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{label} is {value!r}; it must be a number from {lowest:g} to {highest:g}."
        ) from None
    if not (math.isfinite(number) and lowest <= number <= highest):
        raise UserError(
            f"{label} is {number:g}; it must be a number from {lowest:g} to {highest:g}."
        )
    return number


def _check_stages(value: str | Sequence[str]) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    stages = tuple(name.strip() for name in names)
    allowed = ", ".join(STAGES)
    if unknown := [name for name in stages if name not in STAGES]:
        raise UserError(f"Unknown stage {unknown[0]!r}; stages are {allowed}.")
    if stages != tuple(name for name in STAGES if name in stages) or stages[:1] != STAGES[:1]:
        raise UserError(
            f"The stages {', '.join(stages) or '(none)'} are not in a valid order; name "
            f"keyframes first, and the others in the order {allowed}."
        )
    return stages


USUAL_DEFAULTS = GenerationSettings(
    negative_prompt="",
    num_inference_steps=25,
    guidance_scale=4.0,
    guidance_stop=1.0,
    scheduler="ddim",
    fps=8.0,
    interpolation_steps=8,
    upscaler_steps=2,
)
"""Defaults for a model without stored ones; other defaults follow from its networks."""

"""Generation settings and requests: what a caller may choose, and what makes one video again.

Every setting is defined once, in `GenerationSettings`: its type, range, help text and option. The
settings of a request, a model's defaults and the options of the command line derive from it. The
module imports nothing heavy, so that `--help` answers at once.
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

MAX_SEED = 2**63 - 1
MAX_LORA_SCALE = 10.0
MAX_FRAMES = 10_000  # key frames
STAGES = ("keyframes", "interpolation", "upscaler")
SCHEDULERS = ("ddim", "dpm++", "unipc", "euler", "lcm", "flow_map")
_KEY = "magicvideo"  # the one key of the JSON object that travels in files
_RANDOM_SEEDS = 2**32  # few digits: a seed is read, typed and put into file names

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
    """Return the field of a generation setting.

    Args:
        label: Its name in a sentence about a wrong value.
        help: One sentence for the command line and the documentation.
        flag: Its option where that is not the field's name.
        lowest: Least value of a number.
        highest: Largest value of a number.
        default: Value of the field; None stands for the model's own default.
        usual: What the help shows as the default, or None for the value itself.
        optional: Whether a complete request may leave it None.
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
    """What a caller may choose beside prompts and seeds; None is the model's own default.

    The description and range of each setting stand in its field. `from_values` takes numbers and
    sequences of other kinds, such as numpy's.

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
        "How closely to follow the prompt; 1 is no guidance.",
        flag="--guidance",
        lowest=0.0,
        highest=100.0,
    )
    guidance_stop: float | None = setting(
        "The end of guidance",
        "Fraction of the steps after which guidance ends; 1 guides all of them.",
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
        "Key frames per second; the motion is paced by it.",
        lowest=1.0,
        highest=60.0,
    )
    motion: float | None = setting(
        "The motion",
        "How much moves: 0 is the mean of the training clips, 1 a standard deviation more.",
        lowest=-4.0,
        highest=4.0,
        usual="left to the model",
        optional=True,
    )
    overlap: int | None = setting(
        "The overlap",
        "Key frames of a long video that each part takes over from the part before it.",
        lowest=1,
        highest=1000,
        usual="a quarter of what the model makes at once",
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
        "Integer factor by which files enlarge the frames.",
        usual="the shorter side reaches 256 pixels",
        lowest=1,
        highest=32,
    )

    def __post_init__(self) -> None:
        """Convert numbers and sequences to plain ones, and refuse what no model can do."""
        for one in fields(GenerationSettings):
            value = getattr(self, one.name)
            if value is not None:
                object.__setattr__(self, one.name, _checked(one, value))
        if self.negative_prompt and self.guidance_scale == 1:
            raise UserError(
                "A negative prompt works through guidance, and a guidance scale of 1 is none; "
                "raise the scale or leave the negative prompt out."
            )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "GenerationSettings":
        """Return settings from values of any integer, number or sequence type, by name.

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
        """Return these settings, completed by defaults where they are None."""
        return GenerationSettings(**{**defaults.chosen(), **self.chosen()})


@dataclass(frozen=True, kw_only=True)
class ChunkSizes:
    """How much of a video the decoder and the upscaler process at once; it bounds their memory.

    To rounding, a video does not depend on it.

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
        """Refuse sizes that hold nothing."""
        for one in fields(self):
            value = getattr(self, one.name)
            if value < 1:
                raise UserError(f"{cli_flag(one.name)} is {value}; it must be 1 or more.")

    def to_cli_args(self) -> list[str]:
        """Return the options that set these sizes, without those of the defaults."""
        usual = asdict(DEFAULT_CHUNKS)
        chosen = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return [word for name, value in chosen.items() for word in (cli_flag(name), str(value))]


DEFAULT_CHUNKS = ChunkSizes()


def cli_flag(name: str) -> str:
    """Return the option of a setting, by the rule that holds where its field names none."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class ImageCondition:
    """The CLIP embedding of an image that a video is conditioned on.

    Attributes:
        name: Name of the image's file, for people.
        embedding: The embedding's float32 values, little-endian, in base64;
            `image_condition.embedding_of` reads them.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    embedding: str


@dataclass(frozen=True, kw_only=True)
class FirstFrame:
    """The picture that a video begins with, as the model sees it.

    Attributes:
        name: Name of the image's file, for people.
        latents: Float32 values of its latents `c h w`, little-endian, in base64;
            `first_frame.latents_of` reads them.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    latents: str


@dataclass(frozen=True, kw_only=True)
class LoraRef:
    """A LoRA that is merged into the model for a video.

    Attributes:
        name: Name of its file, for people.
        sha256: Its identity, as `pipelines.lora.lora_hash` returns it.
        scale: Factor of its weights.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    sha256: str
    scale: float

    def __post_init__(self) -> None:
        """Refuse a scale that cannot be meant."""
        if not (math.isfinite(self.scale) and abs(self.scale) <= MAX_LORA_SCALE):
            raise UserError(
                f"The scale of the LoRA is {self.scale:g}; it must be a number from "
                f"{-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}."
            )


@dataclass(frozen=True, kw_only=True)
class Request(GenerationSettings):
    """Everything that decides the bytes of one video; it travels in the file.

    The settings of `GenerationSettings` are complete here. Only `motion`, where the video is not
    conditioned on it, and `overlap`, where the model makes it at once, may be None.

    Attributes:
        prompt: Text; may be empty beside an image.
        image_condition: An image beside the text or in its place, or None.
        first_frame: The picture that the video begins with, or None.
        seed: Seed of the noise.
        num_inserted: New frames between two key frames.
        scheduler_options: Configuration values of the scheduler that differ from the model's.
        model: Hash of the model folder, or None for a model that was never saved.
        device: Kind of device, such as `cpu`: each rounds in its own way.
        threads: CPU threads, which decide the order of sums and with it the last bits.
        version: Version of magicvideo.
        loras: What was merged into the model's weights, in order.
        unrecorded: Names of the inputs that decided the video and are not held in the request,
            such as `latents`. With any, the request alone cannot make the video again.
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
        """Refuse values that cannot be."""
        super().__post_init__()
        for one in fields(GenerationSettings):
            if getattr(self, one.name) is None and not one.metadata["optional"]:
                raise UserError(f"The request lacks {one.name}.")
        check_integer("The seed", self.seed, 0, MAX_SEED)
        check_integer("The number of threads", self.threads, 1, 4096)
        check_integer("The number of inserted frames", self.num_inserted, 0, 1000)
        pictures = (self.image_condition, self.first_frame)
        has_condition = any(pictures) or "prompt_embeds" in self.unrecorded
        check_text("The prompt", self.prompt)
        if not has_condition and not self.prompt.strip():
            raise UserError("The prompt is empty; say what the video should show.")

    @property
    def video_fps(self) -> float:
        """Return the frames per second of the finished video."""
        return self.fps * (self.num_inserted + 1)

    @property
    def video_frames(self) -> int:
        """Return the number of frames of the finished video."""
        return self.num_frames + (self.num_frames - 1) * self.num_inserted

    def check_reproducible(self) -> None:
        """Refuse to make a video again whose inputs the request does not hold.

        Raises:
            UserError: If there are such inputs. It names them.
        """
        if self.unrecorded:
            raise UserError(
                f"The video was made with {', '.join(self.unrecorded)}, which its file does not "
                "hold; make it again from Python with the same inputs."
            )

    def to_json(self) -> str:
        """Return the request as one line of ASCII, the text that travels in files."""
        return json.dumps({_KEY: asdict(self)}, sort_keys=True)


def request_from_json(text: str) -> Request | None:
    """Return the request that a file's text holds, or None if the text is not a request.

    Raises:
        UserError: If it is a request that this version cannot read.
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
        seed: One for each video; or the first, from which the others count up; or None for random
            ones. Numpy's integers and arrays are integers and sequences, too.
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
        raise UserError(f"{len(seeds)} seeds were given for {count} videos; give one for each.")
    return seeds


def check_text(label: str, text: str) -> None:
    """Refuse a text with bytes that are no UTF-8, which Python holds as lone surrogates.

    Raises:
        UserError: If there are such bytes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise UserError(
            f"{label} holds bytes that are not UTF-8 ({shown}); type it in UTF-8, or give a text "
            "file in UTF-8 with --prompts."
        ) from None


def check_integer(label: str, value: object, lowest: Number, highest: Number) -> int:
    """Return a value as a plain integer.

    Raises:
        UserError: If it is no integer or out of its range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not lowest <= number <= highest:
        raise UserError(f"{label} is {value}; it must be an integer from {lowest} to {highest}.")
    return number


def _checked(one: "dataclasses.Field[Any]", value: Any) -> object:  # noqa: ANN401
    """Return the value of a setting as its plain type."""
    label, lowest, highest = (one.metadata[key] for key in ("label", "lowest", "highest"))
    if one.name == "stages":
        return _check_stages(value)
    if lowest is None:
        if one.name == "negative_prompt":
            check_text(label, value)
        elif value not in SCHEDULERS:
            raise UserError(
                f"The scheduler {value!r} is not known; choose one of {', '.join(SCHEDULERS)}."
            )
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
        raise UserError(f"The stage {unknown[0]!r} is not known; stages are {allowed}.")
    if stages != tuple(name for name in STAGES if name in stages) or stages[:1] != STAGES[:1]:
        raise UserError(
            f"The stages {', '.join(stages) or '(none)'} cannot follow one another; name "
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
"""The defaults of a model that states none; the other settings follow from its networks."""

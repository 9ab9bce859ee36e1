"""A recipe: one YAML file that says how every stage of one model is trained, read and checked."""

import contextlib
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, PositiveInt, ValidationError

from magicvideo.data.paths import Location, as_location
from magicvideo.errors import UserError
from magicvideo.training.settings import (
    AutoencoderSettings,
    ClipSettings,
    ImageSettings,
    InterpolationSettings,
    KeyframesSettings,
    MachineSettings,
    NoiseSettings,
    Settings,
    ShardSettings,
    StageSettings,
    UNetSettings,
    UpscalerSettings,
    VideoSettings,
    VideoVaeSettings,
)

StageName: TypeAlias = Literal[
    "autoencoder",
    "clip",
    "image",
    "unsupervised",
    "keyframes",
    "interpolation",
    "video_vae",
    "upscaler",
]
PartName: TypeAlias = Literal[
    "vae",
    "text_encoder",
    "tokenizer",
    "image_encoder",
    "unet",
    "image_conditioner",
    "scheduler",
    "interpolator",
    "upscaler",
    "upscaler_scheduler",
]

DataLocation: TypeAlias = Annotated[Location, BeforeValidator(as_location)]


class GenerationDefaults(Settings):
    """What the exported model does where a request gives no value."""

    fps: float = Field(default=8.0, gt=0, description="frames a second of the key frames")
    steps: PositiveInt = Field(default=25, description="diffusion steps")
    guidance_scale: float = Field(default=4.0, ge=1)
    guidance_stop: float = Field(
        default=1.0, ge=0, le=1, description="share of the steps after which guidance ends"
    )
    scheduler: Literal["ddim", "dpm++"] = "ddim"
    interpolation_steps: PositiveInt = Field(default=8, description="diffusion steps")
    upscaler_steps: PositiveInt = Field(default=2, description="diffusion steps")
    interpolation_noise_level: int = Field(
        default=0, ge=0, lt=1000, description="diffusion step up to which keys are noised"
    )
    upscaler_noise_level: float = Field(
        default=0.0, ge=0, description="deviation of the noise on frames that are upscaled"
    )
    license: str | None = Field(default=None, description="of the weights")


class Recipe(Settings):
    """One model: its data, where its run goes, and its stages in order.

    `data`, `output` and `start` are relative to the folder in which the command is run. `data` may
    also be a folder of shards, or its URL.
    """

    name: str
    data: DataLocation
    output: Path
    start: Path | None = Field(
        default=None,
        description="model folder whose weights the stages begin with; what no stage makes "
        "comes from it as it is",
    )
    start_parts: tuple[PartName, ...] | None = Field(
        default=None,
        description="components of `start` that are taken, so that stages make the others anew; "
        "null: all",
    )
    start_sizes: Literal["stable-diffusion-1"] | None = Field(
        default=None,
        description="what `start` is to be; a dry run takes sizes from it while there is no folder",
    )
    size: PositiveInt | None = Field(
        default=None,
        description="side of the frames in pixels, which the prepared data must have; a dry run "
        "without data needs it",
    )
    seed: int = Field(0, ge=0)
    machine: MachineSettings | None = None
    shards: ShardSettings = Field(default_factory=ShardSettings)
    unet: UNetSettings = UNetSettings()
    noise: NoiseSettings = NoiseSettings()
    defaults: GenerationDefaults = GenerationDefaults()
    autoencoder: AutoencoderSettings | None = None
    clip: ClipSettings | None = None
    image: ImageSettings | None = None
    unsupervised: VideoSettings | None = None
    keyframes: KeyframesSettings | None = None
    interpolation: InterpolationSettings | None = None
    video_vae: VideoVaeSettings | None = None
    upscaler: UpscalerSettings | None = None

    def stages(self) -> dict[StageName, StageSettings]:
        """Return the stages that the recipe has, in the order in which they run."""
        found = {name: getattr(self, name) for name in get_args(StageName)}
        return {name: stage for name, stage in found.items() if stage is not None}


def read_recipe(path: Path, changes: list[str]) -> Recipe:
    """Read a recipe and apply changes such as `keyframes.learning_rate=1e-4`.

    Raises:
        UserError: If the file is missing or not YAML, or a name or a value is not allowed.
    """
    values = read_values(path)
    for change in changes:
        _apply(values, change)
    return make_recipe(values, str(path))


def read_values(path: Path) -> dict[str, Any]:
    """Return what a recipe's file says, before any of it is checked.

    Raises:
        UserError: If the file is missing, or no mapping in YAML.
    """
    if not path.is_file():
        raise UserError(f"The recipe {path} does not exist; recipes/ has the ones that come along.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"The recipe {path} is not valid YAML: {first}.") from None
    if not isinstance(values, dict):
        raise UserError(f"The recipe {path} is not a mapping of names to settings.")
    return values


def make_recipe(values: dict[str, Any], source: str) -> Recipe:
    """Return a recipe out of a mapping; `source` says in a mistake where it is from.

    Raises:
        UserError: If a name or a value is not allowed.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_mistake(error, source)) from None


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals or not name:
        raise UserError(
            f"--set {change!r} is not of the form NAME=VALUE, such as keyframes.steps=1000."
        )
    *parents, last = name.split(".")
    target = values
    for parent in parents:
        inner = target.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {change!r}: {parent} is a value and has no settings inside.")
        target = inner
    value = yaml.safe_load(text)
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4 as text, for want of a dot
        with contextlib.suppress(ValueError):
            value = float(value)
    target[last] = value


def _first_mistake(error: ValidationError, source: str) -> str:
    mistake = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        known = _known_names(mistake["loc"][:-1])
        near = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}."
        return f"{source}: {place} is not a setting; {hint}"
    if isinstance(mistake["input"], dict):  # settings that do not go together
        return f"{source}: {place} does not fit: {mistake['msg'].removeprefix('Value error, ')}."
    return f"{source}: {place}={mistake['input']!r} does not fit: {mistake['msg']}."


def _known_names(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)

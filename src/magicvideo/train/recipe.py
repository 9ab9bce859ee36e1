"""A recipe: one YAML file that says how every stage of one model is trained, read and checked."""

import contextlib
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from magicvideo.errors import UserError

StageName: TypeAlias = Literal[
    "autoencoder", "clip", "image", "unsupervised", "keyframes", "interpolation", "upscaler"
]
Rate: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Settings that refuse unknown names and do not change after they were read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StageSettings(Settings):
    """What every stage has: how long, how fast, and how often it looks up."""

    steps: PositiveInt = Field(description="updates of the weights, in all")
    batch_size: PositiveInt = Field(description="samples of one forward pass on one process")
    accumulate: PositiveInt = Field(1, description="forward passes of one update")
    learning_rate: Rate = Field(description="at its height")
    warmup_steps: int = Field(100, ge=0, description="updates of the linear warm-up")
    decay_share: Share = Field(0.2, description="last share of the steps, with a linear decay to 0")
    weight_decay: float = Field(0.01, ge=0)
    beta2: Share = Field(0.99, description="AdamW's second beta")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of an update's gradient")
    ema_decay: Share = Field(0.999, description="of the averaged weights, which are what is kept")
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: PositiveInt = Field(50, description="updates between lines on the console")
    preview_every: PositiveInt = Field(1000, description="updates between sample sheets")
    checkpoint_minutes: float = Field(5.0, gt=0)
    keep_checkpoints: PositiveInt = Field(2, description="how many; the newest are kept")


class PatchAutoencoderSettings(Settings):
    """Sizes of `PatchAutoencoder`, whose docstring explains them."""

    latent_channels: PositiveInt = 16
    patch_size: PositiveInt = 8
    widths: tuple[PositiveInt, PositiveInt] = (96, 192)
    encoder_layers: tuple[PositiveInt, PositiveInt] = (1, 1)
    decoder_layers: tuple[PositiveInt, PositiveInt] = (2, 3)
    norm_num_groups: PositiveInt = 16
    noise_std: float = Field(default=0.05, gt=0)


class AutoencoderSettings(StageSettings):
    """Stage `autoencoder`: frames to latents and back."""

    model: PatchAutoencoderSettings = Field(default_factory=PatchAutoencoderSettings)
    squared_weight: float = Field(4.0, ge=0, description="of the squared error, beside L1")
    gradient_weight: float = Field(1.0, ge=0, description="of L1 between image gradients")
    kl_weight: float = Field(1e-3, ge=0, description="of the squared latents, at unit scale")


class ClipSettings(StageSettings):
    """Stage `clip`: text and image towers trained to agree, with a tokenizer of their own."""

    vocabulary_size: PositiveInt = 2000
    max_tokens: PositiveInt = 32
    width: PositiveInt = 192
    heads: PositiveInt = 4
    text_layers: PositiveInt = 3
    image_layers: PositiveInt = 4
    patch_size: PositiveInt = 8


class UNetSettings(Settings):
    """Sizes of `VideoUNet`, whose docstring explains them."""

    block_out_channels: tuple[PositiveInt, ...] = (128, 160)
    attention_levels: tuple[bool, ...] = (True, True)
    layers_per_block: PositiveInt = 1
    attention_heads: PositiveInt = 4
    norm_num_groups: PositiveInt = 16
    num_frames: PositiveInt = 16
    temporal_attention: Literal["directed", "printed", "bidirectional", "none"] = "directed"
    frame_adaptor: bool = True


class NoiseSettings(Settings):
    """The diffusion process: diffusers' names for its schedules."""

    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = True
    shared: Share = Field(
        default=0.0, description="share of the noise that all frames of a clip have"
    )


class DenoiserSettings(StageSettings):
    """What the stages of the denoiser share."""

    drop_condition: Share = Field(0.1, description="share of samples without a condition")
    snr_gamma: float | None = Field(5.0, gt=0, description="ceiling of the SNR weight; null: none")


class ImageSettings(DenoiserSettings):
    """Stage `image`: the 2D network on single frames."""


class VideoSettings(DenoiserSettings):
    """Stages `unsupervised` and `keyframes`: the video network on clips."""

    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="between frames, inclusive"
    )
    image_condition: Share = Field(
        description="share of samples told by image embeddings, not text"
    )
    reused_rate: float = Field(
        1.0, gt=0, le=1, description="learning rate of reused weights, times"
    )


class InterpolationSettings(DenoiserSettings):
    """Stage `interpolation`: the frames between two key frames."""

    num_inserted: PositiveInt = Field(3, description="new frames between two keys")
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 2), description="between the frames of a window, inclusive"
    )
    max_noise_level: PositiveInt = Field(
        250, le=1000, description="diffusion step below which keys are noised"
    )


class UpscalerModelSettings(Settings):
    """Sizes of `Upscaler`, whose docstring explains them."""

    widths: tuple[PositiveInt, ...] = (48, 96, 176)
    num_blocks: tuple[PositiveInt, ...] = (1, 1, 2)


class UpscalerSettings(StageSettings):
    """Stage `upscaler`: large frames out of small ones."""

    data: Path = Field(description="prepared frames of the large size")
    crop: PositiveInt = Field(128, description="side of the crops, in pixels of large frames")
    varied: Share = Field(0.5, description="share of inputs shrunk in another way than by area")
    reconstructed: Share = Field(0.5, description="share of inputs that pass the autoencoder")
    max_latent_noise: float = Field(
        0.3, ge=0, description="most noise on their latents, as a standard deviation"
    )
    max_noise_level: float = Field(
        0.2, gt=0, description="most noise on all inputs, in pixels from -1 to 1"
    )
    snr_gamma: float | None = Field(5.0, gt=0, description="ceiling of the SNR weight; null: none")
    model: UpscalerModelSettings = Field(default_factory=UpscalerModelSettings)


class GenerationDefaults(Settings):
    """What the exported model does where a request gives no value."""

    fps: float = Field(default=8.0, gt=0, description="frames a second of the key frames")
    steps: PositiveInt = Field(default=25, description="diffusion steps")
    guidance_scale: float = Field(default=4.0, ge=1)
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

    `data`, `output` and `start` are relative to the folder in which the command is run.
    """

    name: str
    data: Path
    output: Path
    start: Path | None = Field(
        default=None,
        description="model folder whose weights the stages begin with; what no stage makes "
        "comes from it as it is",
    )
    seed: int = Field(0, ge=0)
    unet: UNetSettings = UNetSettings()
    noise: NoiseSettings = NoiseSettings()
    defaults: GenerationDefaults = GenerationDefaults()
    autoencoder: AutoencoderSettings | None = None
    clip: ClipSettings | None = None
    image: ImageSettings | None = None
    unsupervised: VideoSettings | None = None
    keyframes: VideoSettings | None = None
    interpolation: InterpolationSettings | None = None
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
    if not path.is_file():
        raise UserError(f"The recipe {path} does not exist; recipes/ has the ones that come along.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"The recipe {path} is not valid YAML: {first}.") from None
    if not isinstance(values, dict):
        raise UserError(f"The recipe {path} is not a mapping of names to settings.")
    for change in changes:
        _apply(values, change)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_mistake(error, str(path))) from None


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
    return f"{source}: {place}={mistake['input']!r} does not fit: {mistake['msg']}."


def _known_names(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)

"""Recipes: YAML files with the settings of all training stages of one model."""

import contextlib
import difflib
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from magicvideo.data.shards.dataset import CACHE
from magicvideo.data.shards.index import PathOrUrl, parse_path_or_url
from magicvideo.data.text_files import TextFileError, read_text
from magicvideo.errors import UserError
from magicvideo.limits import MAX_RECIPE_BYTES

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from typing_extensions import Self

_PACKAGE = Path(__file__).resolve().parent.parent
_RECIPES = (_PACKAGE / "recipes", _PACKAGE.parent.parent / "recipes")  # of a wheel; of a clone
BUNDLED_MODEL = _PACKAGE / "weights" / "emoji"
"""The model included in the package, `init_from: bundled`."""

_MOST_MISTAKES, _LONGEST = 8, 200  # maximal number of reported errors, and of characters of each
_TYPE_TRIED = re.compile(r"^((constrained|function)-|(list|tuple|literal)\[|(int|float|str)$)")
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 1, 4, 4, 80, 80

_FRAME_SIZE = r"^[1-9]\d*x[1-9]\d*$"


def _check_frame_size(value: object) -> object:
    is_side = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if is_side or (isinstance(value, str) and re.match(_FRAME_SIZE, value)):
        return value
    raise ValueError("give the side of a square, such as 64, or width and height, such as 96x64")


FrameSizeSetting: TypeAlias = Annotated[
    PositiveInt | Annotated[str, Field(pattern=_FRAME_SIZE)], BeforeValidator(_check_frame_size)
]
Rate: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Precision: TypeAlias = Literal["no", "bf16", "fp16"]
PrecisionSetting: TypeAlias = Annotated[
    Literal["auto", "no", "bf16", "fp16"],
    # YAML 1.1 parses a bare no as false
    BeforeValidator(lambda value: "no" if value is False else value),
]


def _types_in(annotation: object) -> Iterator[object]:
    """Yield an annotation, and all inside of it."""
    yield annotation
    for inner in get_args(annotation):
        yield from _types_in(inner)


class StrictModel(BaseModel):
    """Immutable settings that refuse unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_truth_value(cls, value: object, info: Any) -> object:  # noqa: ANN401 (ValidationInfo)
        """Refuse a truth value for a number: Python would take `steps: yes` for 1."""
        types = set(_types_in(cls.model_fields[str(info.field_name)].annotation))
        if isinstance(value, bool) and types & {int, float} and bool not in types:
            raise ValueError(f"a number is wanted; YAML reads yes, on and true as {True}")
        return value


class StageConfig(StrictModel):
    """Settings of every stage: duration, learning rate, logging and checkpoint intervals."""

    steps: PositiveInt = Field(description="number of updates")
    batch_size: PositiveInt = Field(description="samples per forward pass and process")
    subject_balance: Share = Field(
        0.0, description="0: all clips are sampled equally often; 1: all subjects are"
    )
    gradient_accumulation_steps: PositiveInt = Field(1, description="forward passes per update")
    learning_rate: Rate = Field(description="peak")
    warmup_steps: int = Field(100, ge=0, description="updates of linear warm-up")
    lr_decay_ratio: Share = Field(
        0.2, description="fraction of the steps, at the end, with a linear decay to 0"
    )
    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "muon"] = Field(
        "adamw", description="adamw_8bit needs bitsandbytes"
    )
    weight_decay: float = Field(0.01, ge=0)
    beta2: Share = Field(0.99, description="AdamW's second beta")
    max_grad_norm: float = Field(
        1.0, gt=0, description="maximal norm of the gradients; larger ones are clipped"
    )
    ema_decay: Share = Field(
        0.999, description="decay of the averaged weights, which become the output"
    )
    extra_ema_decays: tuple[Share, ...] = Field(
        (),
        description="decays of additional averages; the average with the lowest loss on held-out "
        "clips becomes the output, and the others are saved next to it",
    )
    ema_device: Literal["same", "cpu"] = Field(
        "same", description="device of the averages: that of the weights, or the CPU"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="save only the inputs of blocks and recompute the rest"
    )
    compile: bool = Field(default=False, description="compile the network, block by block")
    mixed_precision: PrecisionSetting = Field(
        "auto",
        description="auto: bf16 on a GPU that supports it, and on a CPU if it is measured to be "
        "faster",
    )
    log_every: PositiveInt = Field(50, description="updates between two log entries")
    preview_every: PositiveInt = Field(1000, description="updates between two sample sheets")
    checkpoint_minutes: float = Field(5.0, gt=0)
    keep_checkpoints: PositiveInt = Field(2, description="number of newest checkpoints to keep")

    @model_validator(mode="after")
    def _averages_differ(self) -> "Self":
        decays = (self.ema_decay, *self.extra_ema_decays)
        if len(set(decays)) < len(decays):
            raise ValueError(
                f"extra_ema_decays={list(self.extra_ema_decays)} must differ from each other and "
                f"from ema_decay={self.ema_decay}"
            )
        return self


class PatchAutoencoderConfig(StrictModel):
    """Sizes of `PatchAutoencoder`; see its docstring."""

    latent_channels: PositiveInt = 16
    patch_size: PositiveInt = 8
    widths: tuple[PositiveInt, PositiveInt] = (96, 192)
    encoder_layers: tuple[PositiveInt, PositiveInt] = (1, 1)
    decoder_layers: tuple[PositiveInt, PositiveInt] = (2, 3)
    norm_num_groups: PositiveInt = 16
    noise_std: float = Field(default=0.05, gt=0)


class AutoencoderStageConfig(StageConfig):
    """Stage `autoencoder`: trains the autoencoder between frames and latents."""

    model: PatchAutoencoderConfig = Field(default_factory=PatchAutoencoderConfig)
    squared_weight: float = Field(
        4.0, ge=0, description="weight of the squared error, relative to L1"
    )
    gradient_weight: float = Field(1.0, ge=0, description="weight of L1 between image gradients")
    kl_weight: float = Field(1e-3, ge=0, description="weight of the squared scaled latents")


class CLIPStageConfig(StageConfig):
    """Stage `clip`: trains CLIP's text and image encoders, and a tokenizer."""

    vocabulary_size: PositiveInt = 2000
    max_tokens: PositiveInt = 32
    width: PositiveInt = 192
    heads: PositiveInt = 4
    text_layers: PositiveInt = 3
    image_layers: PositiveInt = 4
    patch_size: PositiveInt = 8


class UNetConfig(StrictModel):
    """Sizes of `VideoUNet`; see its docstring."""

    block_out_channels: tuple[PositiveInt, ...] = (128, 160)
    attention_levels: tuple[bool, ...] = (True, True)
    layers_per_block: PositiveInt = 1
    attention_heads: PositiveInt | tuple[PositiveInt, ...] = Field(
        default=4, description="one number, or one per level"
    )
    linear_projection: bool = Field(
        default=False,
        description="linear layers around transformers, as in Stable Diffusion 2.x",
    )
    norm_num_groups: PositiveInt = 16
    num_frames: PositiveInt = 16
    temporal_attention: Literal["directed", "post_softmax_mask", "bidirectional", "none"] = (
        "directed"
    )
    frame_adaptor: bool = True
    spatial_attention: bool = True
    convolutions: Literal["2d", "2+1d", "3d"] = "2d"
    motion_condition: bool = Field(
        default=False, description="condition the network on a motion score"
    )


class LoaderConfig(StrictModel):
    """How batches are read."""

    num_workers: int | None = Field(
        default=None,
        ge=0,
        description="worker processes per training process; null: 0 on a CPU, the number of "
        "cores, at most 8, on a GPU",
    )
    prefetch_factor: PositiveInt = Field(default=2, description="batches prefetched by each worker")


class HardwareConfig(StrictModel):
    """Hardware assumed by a dry run; training uses the available hardware."""

    gpus: PositiveInt = Field(1, description="number of processes, each with one GPU")
    tflops: float = Field(gt=0, description="peak of one GPU in the recipe's precision")
    utilisation: Share = Field(0.4, gt=0, description="fraction of the peak achieved in training")
    clips: PositiveInt | None = Field(
        None, description="number of clips, to estimate their size on disk"
    )


class ShardConfig(StrictModel):
    """Reading of shards."""

    window: PositiveInt = Field(
        default=8,
        description="number of shards among which clips are shuffled; three times as many are "
        "cached",
    )
    cache: Path = Field(default=CACHE, description="cache of shards downloaded from a URL")


class NoiseConfig(StrictModel):
    """The diffusion process, with diffusers' names."""

    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = True
    noise_correlation: Share = Field(
        default=0.0, description="fraction of the noise variance shared by all frames of a clip"
    )
    noise_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="correlation of the remaining noise between adjacent frames",
    )


TextEncoderRate: TypeAlias = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="learning rate of the text encoder, trained with the denoiser; 0: frozen",
    ),
]


class DenoiserStageConfig(StageConfig):
    """Settings shared by the stages of the denoiser."""

    condition_dropout: Share = Field(0.1, description="fraction of samples without a condition")
    snr_gamma: float | None = Field(
        5.0, gt=0, description="gamma of min-SNR weights; null: no weights"
    )
    terminal_step_prob: Share = Field(
        0.0, description="additional fraction of samples at the last diffusion step"
    )
    timestep_power: float = Field(
        1.0,
        gt=0,
        le=4,
        description="training timesteps are T * u^power with u uniform; below 1, steps of high "
        "noise are drawn more often",
    )


class ImageStageConfig(DenoiserStageConfig):
    """Stage `image`: the 2D network on single frames."""

    text_encoder_learning_rate: TextEncoderRate = 0.0


class LoraTrainingConfig(StrictModel):
    """Trainable low-rank adapters; all other weights are frozen."""

    rank: PositiveInt = Field(16, description="rank of the LoRA layers")
    alpha: float = Field(16.0, gt=0, description="LoRA updates are scaled by alpha / rank")
    targets: tuple[
        Literal["attention", "feed_forward", "projections", "convolutions", "temporal"], ...
    ] = Field(("attention",), min_length=1, description="layers of the U-Net with LoRA")


class VideoStageConfig(DenoiserStageConfig):
    """Stages `unsupervised` and `keyframes`: the video network on clips."""

    trainable: Literal["all", "temporal"] = Field(
        "all",
        description="temporal: train only temporal layers and freeze the image network's weights",
    )
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="minimal and maximal distance of two frames, in frames of the data"
    )
    image_condition: Share = Field(
        description="fraction of samples conditioned on an image embedding instead of text"
    )
    pretrained_lr_scale: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate for pretrained weights"
    )
    temporal_weight: float = Field(
        1.0, gt=0, description="weight of the error's deviation from its mean over the frames"
    )
    mode_weight_limit: float | None = Field(
        None,
        gt=0,
        description="maximal weight of a temporal mode of the error, weighted by its inverse "
        "noise; null: equal weights",
    )
    given_frames_prob: Share = Field(
        0.0, description="fraction of clips with given (clean) first frames"
    )
    max_given_frames: PositiveInt = Field(
        8, description="maximal number of given frames; it is one in half of these clips"
    )
    motion_dropout: Share = Field(
        0.3, description="fraction of clips without a motion score, if the network has one"
    )
    weight_interpolation: Share = Field(
        0.0, description="fraction of the initial weights in the pretrained weights of the output"
    )


class KeyframesStageConfig(VideoStageConfig):
    """Stage `keyframes`, which can also train a LoRA for a finished model."""

    text_encoder_learning_rate: TextEncoderRate = 0.0
    frame_batch_size: int = Field(
        0,
        ge=0,
        description="single frames of other clips per batch of clips; their loss is added to that "
        "of the clips",
    )
    lora: LoraTrainingConfig | None = None


class DistillStageConfig(StageConfig):
    """Stage `distill`: distills the key-frame network into a network for few steps.

    The teacher is the key-frame network with guidance, so the student needs no guidance.
    """

    sampling_steps: PositiveInt = Field(
        4, description="default number of steps of the exported model"
    )
    guidance_scale: float | None = Field(
        None, ge=1, description="guidance scale of the teacher; null: the default one"
    )
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="minimal and maximal distance of two frames, in frames of the data"
    )
    diagonal_prob: Share = Field(
        0.5,
        description="fraction of samples with an interval of zero length, which learn the velocity",
    )
    to_data_prob: Share = Field(
        0.25, description="fraction of samples whose interval ends at clean latents"
    )
    finite_difference: float = Field(
        0.005, gt=0, le=0.1, description="step of the central difference, in time"
    )
    mode_weight_limit: float | None = Field(
        None, gt=0, description="as in keyframes; null: equal weights"
    )
    given_frames_prob: Share = Field(
        0.0, description="fraction of clips with given (clean) first frames"
    )
    max_given_frames: PositiveInt = Field(
        8, description="maximal number of given frames; it is one in half of these clips"
    )
    motion_dropout: Share = Field(
        0.3, description="fraction of clips without a motion score, if the network has one"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> "Self":
        if self.diagonal_prob + self.to_data_prob > 1:
            raise ValueError(
                f"diagonal_prob={self.diagonal_prob} and to_data_prob={self.to_data_prob} are "
                "more than 1 together; reduce one of them"
            )
        return self


class InterpolationStageConfig(DenoiserStageConfig):
    """Stage `interpolation`: the frames between two key frames."""

    num_inserted: PositiveInt = Field(3, description="new frames between two key frames")
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 2), description="minimal and maximal distance of two frames, in frames of the data"
    )
    max_noise_level: PositiveInt = Field(
        250,
        le=1000,
        description="key frames are noised up to a random diffusion step below this one",
    )
    clean_prob: Share = Field(0.5, description="fraction of windows with clean key frames")
    attention_levels: tuple[bool, ...] | None = Field(
        None, description="levels of the U-Net with attention; null: as in the denoiser"
    )
    estimate_channels: PositiveInt = Field(
        96, multiple_of=8, description="width of the regression network"
    )
    estimate_blocks: PositiveInt = Field(3, description="residual blocks of the regression network")
    denoise_every: PositiveInt = Field(
        1,
        description="the U-Net is trained on one of this many windows, and the regression "
        "network, which is much faster, on all",
    )
    pretrained_lr_scale: Rate = Field(1.0, description="factor of the learning rate for the U-Net")

    @model_validator(mode="after")
    def _divides(self) -> "InterpolationStageConfig":
        if self.batch_size % self.denoise_every:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of "
                f"denoise_every={self.denoise_every}"
            )
        return self


class VideoVaeStageConfig(StageConfig):
    """Stage `video_vae`: trains the autoencoder's decoder on clips."""

    num_frames: PositiveInt = Field(16, description="number of frames of a clip")
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="minimal and maximal distance of two frames, in frames of the data"
    )
    temporal_heads: PositiveInt = Field(4, description="attention heads of both temporal layers")
    temporal_window_size: PositiveInt = Field(
        16, description="number of frames each frame attends to, including itself"
    )
    max_latent_noise: float = Field(
        0.15,
        ge=0,
        description="maximal standard deviation of the noise on latents, which simulates "
        "generated latents",
    )
    common_latent_noise: Share = Field(
        0.4, description="fraction of that noise's variance shared by all positions of a frame"
    )
    clean_prob: Share = Field(0.5, description="fraction of clips with clean latents")
    squared_weight: float = Field(
        4.0, ge=0, description="weight of the squared error, relative to L1"
    )
    gradient_weight: float = Field(1.0, ge=0, description="weight of L1 between image gradients")
    perceptual_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the perceptual distance, computed with the CLIP image encoder",
    )
    temporal_weight: float = Field(
        1.0, ge=0, description="weight of the L1 error of frame differences"
    )
    flicker_weight: float = Field(
        0.0, ge=0, description="weight of the mean frame difference where the clip is static"
    )
    pretrained_lr_scale: float = Field(
        0.1, gt=0, le=1, description="factor of the learning rate for pretrained weights"
    )


class UpscalerModelConfig(StrictModel):
    """Sizes of `Upscaler`; see its docstring."""

    factor: PositiveInt = 4
    widths: tuple[PositiveInt, ...] = (48, 96, 176)
    num_blocks: tuple[PositiveInt, ...] = (1, 1, 2)


class UpscalerStageConfig(StageConfig):
    """Stage `upscaler`: super-resolution of frames."""

    data: Path = Field(description="prepared data with large frames")
    crop: PositiveInt = Field(128, description="side of the crops, in pixels of large frames")
    degradation_prob: Share = Field(
        0.5, description="fraction of inputs downsampled with a kernel other than area"
    )
    vae_roundtrip_prob: Share = Field(
        0.5, description="fraction of inputs passed through the autoencoder"
    )
    max_latent_noise: float = Field(
        0.3, ge=0, description="maximal standard deviation of the noise on their latents"
    )
    max_noise_level: float = Field(
        0.2,
        gt=0,
        description="maximal standard deviation of the noise on inputs; pixels are in [-1, 1]",
    )
    snr_gamma: float | None = Field(
        5.0, gt=0, description="gamma of min-SNR weights; null: no weights"
    )
    model: UpscalerModelConfig = Field(default_factory=UpscalerModelConfig)


StageName: TypeAlias = Literal[
    "autoencoder",
    "clip",
    "image",
    "unsupervised",
    "keyframes",
    "distill",
    "interpolation",
    "video_vae",
    "upscaler",
]
ComponentName: TypeAlias = Literal[
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

DataLocation: TypeAlias = Annotated[PathOrUrl, BeforeValidator(parse_path_or_url)]


class GenerationDefaults(StrictModel):
    """Default generation settings, stored in the exported model."""

    fps: float = Field(default=8.0, gt=0, description="key frames per second")
    steps: PositiveInt = Field(default=25, description="diffusion steps")
    guidance_scale: float = Field(default=4.0, ge=1)
    guidance_stop: float = Field(
        default=1.0, ge=0, le=1, description="fraction of the steps that use guidance"
    )
    scheduler: Literal["ddim", "dpm++"] = "ddim"
    interpolation_steps: PositiveInt = Field(default=8, description="diffusion steps")
    upscaler_steps: PositiveInt = Field(default=2, description="diffusion steps")
    interpolation_noise_level: int = Field(
        default=0,
        ge=0,
        lt=1000,
        description="diffusion step up to which the interpolator's key frames are noised",
    )
    upscaler_noise_level: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the noise on the upscaler's input frames",
    )
    license: str | None = Field(default=None, description="licence of the weights")


class Recipe(StrictModel):
    """Recipe of one model: data, output folder, and stages in order.

    `data`, `output` and `init_from` are relative to the working directory. `data` may also be a
    folder of shards, or its URL.
    """

    name: str
    data: DataLocation
    output: Path
    init_from: Annotated[
        Path | None,
        BeforeValidator(lambda value: BUNDLED_MODEL if value == "bundled" else value),
    ] = Field(
        default=None,
        description="model folder with the initial weights; components that no stage trains are "
        "copied from it; `bundled` is the model included in the package",
    )
    init_components: tuple[ComponentName, ...] | None = Field(
        default=None,
        description="components to initialize from `init_from`; the others are trained from "
        "scratch; null: all",
    )
    init_preset: Literal["stable-diffusion-1"] | None = Field(
        default=None,
        description="preset with the sizes of `init_from`, for a dry run before that folder exists",
    )
    size: FrameSizeSetting | None = Field(
        default=None,
        description="side of the frames in pixels, or width and height such as 96x64; must match "
        "the prepared data; required for a dry run without data",
    )
    seed: int = Field(0, ge=0)
    tracker: Literal["tensorboard", "wandb", "none"] = Field(
        default="tensorboard",
        description="additional logger for curves and sample sheets",
    )
    loader: LoaderConfig = LoaderConfig()
    hardware: HardwareConfig | None = None
    shards: ShardConfig = Field(default_factory=ShardConfig)
    unet: UNetConfig = UNetConfig()
    noise: NoiseConfig = NoiseConfig()
    defaults: GenerationDefaults = GenerationDefaults()
    autoencoder: AutoencoderStageConfig | None = None
    clip: CLIPStageConfig | None = None
    image: ImageStageConfig | None = None
    unsupervised: VideoStageConfig | None = None
    keyframes: KeyframesStageConfig | None = None
    distill: DistillStageConfig | None = None
    interpolation: InterpolationStageConfig | None = None
    video_vae: VideoVaeStageConfig | None = None
    upscaler: UpscalerStageConfig | None = None

    def stages(self) -> dict[StageName, StageConfig]:
        """Return the stages of the recipe, in order."""
        found = {name: getattr(self, name) for name in get_args(StageName)}
        return {name: stage for name, stage in found.items() if stage is not None}


def read_recipe(path: Path, changes: list[str], scale: float = 1.0) -> Recipe:
    """Read a recipe and apply changes such as `keyframes.learning_rate=1e-4`.

    Args:
        path: A file, or the name of a packaged recipe, such as `emoji`.
        changes: Changed settings, by dotted names.
        scale: Factor on the number of updates and warm-up updates of all stages.

    Raises:
        UserError: If the file is missing or not YAML, or names or values are invalid. The message
            lists all errors.
    """
    values = load_yaml(path)
    for change in changes:
        _apply(values, change)
    recipe = parse_recipe(values, str(path))
    return recipe if scale == 1.0 else scale_recipe(recipe, scale)


def scale_recipe(recipe: Recipe, scale: float) -> Recipe:
    """Scale the number of updates of all stages, to at least one."""
    scaled: dict[str, Any] = {
        name: stage.model_copy(
            update={
                "steps": max(1, round(stage.steps * scale)),
                "warmup_steps": round(stage.warmup_steps * scale),
            }
        )
        for name, stage in recipe.stages().items()
    }
    return recipe.model_copy(update=scaled)


def packaged_recipes() -> dict[str, Path]:
    """Return the packaged recipes by name."""
    folder = next((folder for folder in _RECIPES if folder.is_dir()), _RECIPES[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if _is_recipe(path)}


def _is_recipe(path: Path) -> bool:
    """Return whether a file is a training recipe, not a file of another command."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(values, dict) and ("data" in values or "base" in values)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # an invalid file name
        return False


def find_recipe(path: Path) -> Path:
    """Locate a recipe by its path or by the name of a packaged recipe.

    Raises:
        UserError: If it does not exist. The message suggests the most similar name.
    """
    if _is_file(path):
        return path
    known = packaged_recipes()
    if str(path) in known:
        return known[str(path)]
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the package has {', '.join(known)}."
    raise UserError(f"The recipe {path} does not exist; {hint}")


def load_yaml(path: Path) -> dict[str, Any]:
    """Load the YAML of a recipe, merged with its `base`, without validation.

    Raises:
        UserError: If the file is missing, is not a YAML mapping, or is its own base.
    """
    return _load_on_base(path, ())


class _RecipeLoader(yaml.SafeLoader):
    """YAML of safe types, in which no mapping has a name twice: one value would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in seen:
                again = f"the second time in line {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice, {again}"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _load_on_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    file = find_recipe(path)
    if file.resolve() in above:
        raise UserError(f"The recipe {path} is its own base.")
    try:
        values = yaml.load(read_text(file, MAX_RECIPE_BYTES), _RecipeLoader)
    except TextFileError as error:
        raise UserError(f"The recipe {path} {error}.") from None
    except RecursionError:
        raise UserError(f"The recipe {path} is nested too deeply.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: invalid UTF-8, or an invalid date
        first = str(error).splitlines()[0]
        raise UserError(f"The recipe {path} is not valid YAML: {first}.") from None
    if not isinstance(values, dict):
        raise UserError(f"The recipe {path} is not a mapping of names to settings.")
    base = values.pop("base", None)
    if base is None:
        return values
    beside = file.parent / str(base)
    below = _load_on_base(beside if _is_file(beside) else Path(str(base)), (*above, file.resolve()))
    return deep_merge(below, values)


def deep_merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge nested settings; those of `above` override those of `below`."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(name), dict)
        merged[name] = deep_merge(below[name], value) if both else value
    return merged


def parse_recipe(values: dict[str, Any], source: str) -> Recipe:
    """Validate a recipe; `source` names its origin in error messages.

    Raises:
        UserError: If names or values are invalid. The message lists all errors.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_describe_mistakes(error, source)) from None


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals or not name:
        raise UserError(
            f"--set {change!r} must have the form NAME=VALUE, such as keyframes.steps=1000."
        )
    *parents, last = name.split(".")
    target = values
    for parent in parents:
        inner = target.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {change!r}: {parent} is a value and has no nested settings.")
        target = inner
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {_short(change)!r}: the value is not valid YAML.") from None
    if isinstance(value, str):
        # YAML 1.1 parses 1e-4, without a dot, as text
        with contextlib.suppress(ValueError):
            value = float(value)
    target[last] = value


def _describe_mistakes(error: ValidationError, source: str) -> str:
    """Describe validation errors: one sentence for all missing settings, one per other error."""
    mistakes = error.errors(include_url=False)
    missing = [_place(m) for m in mistakes if m["type"] == "missing"]
    others = [_describe_mistake(m) for m in mistakes if m["type"] != "missing"]
    sentences = [f"{', '.join(missing)} must be given."] if missing else []
    if len(others) > _MOST_MISTAKES:
        sentences.append(f"There are {len(others) - _MOST_MISTAKES} more errors.")
    return f"{source}: " + " ".join([*others[:_MOST_MISTAKES], *sentences])


def _place(mistake: "ErrorDetails") -> str:
    """Return the name of a setting, without the types that pydantic tried."""
    names = [str(part) for part in mistake["loc"]]
    return _short(".".join(name for name in names if not _TYPE_TRIED.search(name)))


def _describe_mistake(mistake: "ErrorDetails") -> str:
    place = _place(mistake)
    if mistake["type"] == "extra_forbidden":
        known = _known_names(mistake["loc"][:-1])
        near = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}."
        return f"{place} is not a setting; {hint}"
    if isinstance(mistake["input"], dict):  # incompatible settings
        return f"{place} is invalid: {mistake['msg'].removeprefix('Value error, ')}."
    reason = _short(mistake["msg"].removeprefix("Value error, "))
    return f"{place}={_REPR.repr(mistake['input'])} is invalid: {reason}."


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _known_names(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes.

    A recipe with a `base` only needs the settings that differ, so no setting is required.
    """
    schema = Recipe.model_json_schema()
    schema["title"] = "magicvideo recipe"
    schema["properties"]["base"] = {
        "type": "string",
        "description": "The recipe that this one modifies: the name of a packaged recipe, or a "
        "file.",
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for definition in (schema, *schema["$defs"].values()):
        definition.pop("required", None)
        definition["additionalProperties"] = False
    return schema


def recipe_reference() -> str:
    """Return the reference of all settings in Markdown."""
    lines = [
        "# Settings of recipes",
        "",
        "Generated by `magicvideo train --reference`; `magicvideo train --schema` prints the same "
        "as JSON schema. With `base: NAME`, a recipe only needs the settings that differ from the "
        "recipe NAME.",
        "",
    ]
    lines += _section("The recipe", "", Recipe)
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, prefix: str, model: type[BaseModel]) -> list[str]:
    about = (model.__doc__ or "").strip().splitlines()[0]
    lines = [f"## {title}", "", about, "", "| setting | type | default | |", "|---|---|---|---|"]
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            nested.append((name, inner))
            described = f"see [`{prefix}{name}`](#{_anchor(prefix + name)})"
            lines.append(f"| `{name}` | settings | {_default(field)} | {described} |")
            continue
        kind = _type_name(field)
        lines.append(f"| `{name}` | {kind} | {_default(field)} | {field.description or ''} |")
    lines.append("")
    for name, inner in nested:
        lines += _section(f"`{prefix}{name}`", f"{prefix}{name}.", inner)
    return lines


def _anchor(name: str) -> str:
    return name.replace(".", "").lower()


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any annotation
    """Return the model of nested settings of a field, if any."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**must be given**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        value = list(value)
    # in YAML syntax
    written = {None: "null", True: "true", False: "false"}.get(value) if _is_plain(value) else None
    return f"`{value if written is None else written}`"


def _is_plain(value: Any) -> bool:  # noqa: ANN401 - any default
    return value is None or isinstance(value, bool)


def _type_name(field: FieldInfo) -> str:
    name = _name_of(field.annotation)
    bounds = [
        f"{sign} {getattr(bound, key)}"
        for bound in field.metadata
        for key, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(bound, key)
    ]
    return f"{name} {', '.join(bounds)}".strip()


def _name_of(annotation: Any) -> str:  # noqa: ANN401 - any annotation
    arguments = get_args(annotation)
    if annotation is None or annotation is type(None):
        return "null"
    if not arguments:
        return getattr(annotation, "__name__", str(annotation))
    if str(get_origin(annotation)).endswith("Literal"):
        return ", ".join(f"`{value}`" for value in arguments)
    if get_origin(annotation) is tuple:
        inner = [_name_of(argument) for argument in arguments if argument is not Ellipsis]
        return f"list of {inner[0]}" if inner else "list"
    if hasattr(annotation, "__metadata__"):
        return _name_of(arguments[0])
    return " or ".join(dict.fromkeys(_name_of(argument) for argument in arguments))

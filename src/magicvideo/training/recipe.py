"""A recipe: one YAML file that says how every stage of one model is trained, read and checked."""

import contextlib
import difflib
import re
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from magicvideo.data.shards.dataset import CACHE
from magicvideo.data.shards.index import PathOrUrl, parse_path_or_url
from magicvideo.data.text_files import TextFileError, read_text
from magicvideo.errors import UserError
from magicvideo.limits import MAX_RECIPE_BYTES

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from typing_extensions import Self
from typing import get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_PACKAGE = Path(__file__).resolve().parent.parent
_RECIPES = (_PACKAGE / "recipes", _PACKAGE.parent.parent / "recipes")  # of a wheel; of a clone
BUNDLED_MODEL = _PACKAGE / "weights" / "emoji"
"""The model that the package has: what `init_from: bundled` means."""

_MOST_MISTAKES, _LONGEST = 8, 200  # mistakes, and characters of each, that are shown
_TYPE_TRIED = re.compile(r"^((constrained|function)-|(list|tuple|literal)\[|(int|float|str)$)")
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 1, 4, 4, 80, 80

_FRAME_SIZE = r"^[1-9]\d*x[1-9]\d*$"


def _check_frame_size(value: object) -> object:
    is_side = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if is_side or (isinstance(value, str) and re.match(_FRAME_SIZE, value)):
        return value
    raise ValueError("give the side of squares, such as 64, or width and height, such as 96x64")


FrameSizeSetting: TypeAlias = Annotated[
    PositiveInt | Annotated[str, Field(pattern=_FRAME_SIZE)], BeforeValidator(_check_frame_size)
]
Rate: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Precision: TypeAlias = Literal["no", "bf16", "fp16"]
PrecisionSetting: TypeAlias = Annotated[
    Literal["auto", "no", "bf16", "fp16"],
    # YAML 1.1 reads a bare no as false
    BeforeValidator(lambda value: "no" if value is False else value),
]


class StrictModel(BaseModel):
    """Settings that refuse unknown names and do not change after they were read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StageConfig(StrictModel):
    """Settings of every stage: duration, learning rate, logging and checkpoint intervals."""

    steps: PositiveInt = Field(description="number of updates")
    batch_size: PositiveInt = Field(description="samples per forward pass and process")
    subject_balance: Share = Field(
        0.0, description="0: every clip is drawn equally often; 1: every subject is"
    )
    gradient_accumulation_steps: PositiveInt = Field(1, description="forward passes per update")
    learning_rate: Rate = Field(description="peak")
    warmup_steps: int = Field(100, ge=0, description="updates of linear warm-up")
    lr_decay_ratio: Share = Field(
        0.2, description="fraction of the steps, at the end, with a linear decay to 0"
    )
    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "muon"] = Field(
        "adamw", description="adamw_8bit comes from bitsandbytes"
    )
    weight_decay: float = Field(0.01, ge=0)
    beta2: Share = Field(0.99, description="AdamW's second beta")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    ema_decay: Share = Field(0.999, description="of the averaged weights, which become the output")
    extra_ema_decays: tuple[Share, ...] = Field(
        (),
        description="decays of further averages; of all of them the one with the least loss on "
        "held-out clips becomes the output, and the others are kept beside it",
    )
    ema_device: Literal["same", "cpu"] = Field(
        "same", description="where averages are kept: with the weights, or on the CPU"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="store only the inputs of blocks, and recompute the rest"
    )
    compile: bool = Field(default=False, description="compile the network, block by block")
    mixed_precision: PrecisionSetting = Field(
        "auto",
        description="auto: bf16 on a GPU that has it, and on a CPU where an update measures faster",
    )
    log_every: PositiveInt = Field(50, description="updates between two lines of progress")
    preview_every: PositiveInt = Field(1000, description="updates between two sheets of samples")
    checkpoint_minutes: float = Field(5.0, gt=0)
    keep_checkpoints: PositiveInt = Field(2, description="the newest so many are kept")

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
    """Sizes of `PatchAutoencoder`, whose docstring explains them."""

    latent_channels: PositiveInt = 16
    patch_size: PositiveInt = 8
    widths: tuple[PositiveInt, PositiveInt] = (96, 192)
    encoder_layers: tuple[PositiveInt, PositiveInt] = (1, 1)
    decoder_layers: tuple[PositiveInt, PositiveInt] = (2, 3)
    norm_num_groups: PositiveInt = 16
    noise_std: float = Field(default=0.05, gt=0)


class AutoencoderStageConfig(StageConfig):
    """Stage `autoencoder`: encodes frames to latents, and decodes them."""

    model: PatchAutoencoderConfig = Field(default_factory=PatchAutoencoderConfig)
    squared_weight: float = Field(4.0, ge=0, description="weight of the squared error beside L1")
    gradient_weight: float = Field(1.0, ge=0, description="weight of L1 between image gradients")
    kl_weight: float = Field(1e-3, ge=0, description="weight of the squared latents at unit scale")


class CLIPStageConfig(StageConfig):
    """Stage `clip`: text and image towers trained to agree, with a tokenizer of their own."""

    vocabulary_size: PositiveInt = 2000
    max_tokens: PositiveInt = 32
    width: PositiveInt = 192
    heads: PositiveInt = 4
    text_layers: PositiveInt = 3
    image_layers: PositiveInt = 4
    patch_size: PositiveInt = 8


class UNetConfig(StrictModel):
    """Sizes of `VideoUNet`, whose docstring explains them."""

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
        default=False, description="condition the network on how much a clip moves"
    )


class LoaderConfig(StrictModel):
    """How batches are read."""

    num_workers: int | None = Field(
        default=None,
        ge=0,
        description="processes that read ahead, for each training process; null: none on a CPU, as "
        "many as there are cores on a GPU, at most 8",
    )
    prefetch_factor: PositiveInt = Field(default=2, description="batches read ahead by each")


class HardwareConfig(StrictModel):
    """The hardware that a dry run assumes. Training itself uses what is there."""

    gpus: PositiveInt = Field(1, description="number of processes, each with one GPU")
    tflops: float = Field(gt=0, description="peak of one GPU in the recipe's precision")
    utilisation: Share = Field(0.4, gt=0, description="fraction of the peak that training reaches")
    clips: PositiveInt | None = Field(
        None, description="number of clips, to estimate their size on disk"
    )


class ShardConfig(StrictModel):
    """How data in shards are read."""

    window: PositiveInt = Field(
        default=8, description="shards among which clips are shuffled; three times as many are kept"
    )
    cache: Path = Field(default=CACHE, description="folder for shards downloaded from a URL")


class NoiseConfig(StrictModel):
    """The diffusion process: diffusers' names for its schedules."""

    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = True
    noise_correlation: Share = Field(
        default=0.0, description="fraction of the noise variance that all frames of a clip share"
    )
    noise_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="correlation of the remaining noise of adjacent frames",
    )


TextEncoderRate: TypeAlias = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="learning rate of the text encoder, which is then trained with the denoiser; "
        "0: it is frozen",
    ),
]


class DenoiserStageConfig(StageConfig):
    """Settings that the stages of the denoiser share."""

    condition_dropout: Share = Field(0.1, description="fraction of samples without a condition")
    snr_gamma: float | None = Field(
        5.0, gt=0, description="gamma of min-SNR weights; null: no weights"
    )
    terminal_step_prob: Share = Field(
        0.0, description="fraction of samples set to the last diffusion step"
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

    rank: PositiveInt = Field(16, description="rank of each layer's update")
    alpha: float = Field(16.0, gt=0, description="updates are multiplied by alpha / rank")
    targets: tuple[
        Literal["attention", "feed_forward", "projections", "convolutions", "temporal"], ...
    ] = Field(("attention",), min_length=1, description="layers of the U-Net that get an adapter")


class VideoStageConfig(DenoiserStageConfig):
    """Stages `unsupervised` and `keyframes`: the video network on clips."""

    trainable: Literal["all", "temporal"] = Field(
        "all",
        description="temporal: temporal layers only; the image network's weights are frozen",
    )
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="least and largest distance of two frames, in frames of the data"
    )
    image_condition: Share = Field(
        description="fraction of samples conditioned on an image embedding instead of text"
    )
    pretrained_lr_scale: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate for reused weights"
    )
    temporal_weight: float = Field(
        1.0, gt=0, description="weight of the error's deviation from its mean over the frames"
    )
    mode_weight_limit: float | None = Field(
        None,
        gt=0,
        description="temporal modes of the error weigh by the inverse of their noise, at most this "
        "much; null: all alike",
    )
    given_frames_prob: Share = Field(
        0.0, description="fraction of clips whose first frames are given without noise"
    )
    max_given_frames: PositiveInt = Field(
        8, description="largest number of these frames; in half of such clips it is one"
    )
    motion_dropout: Share = Field(
        0.3, description="fraction of clips without a motion score, where the network takes one"
    )
    weight_interpolation: Share = Field(
        0.0, description="fraction of the initial weights in the reused weights of the output"
    )


class KeyframesStageConfig(VideoStageConfig):
    """Stage `keyframes`, which may make a LoRA of a finished model in place of a new one."""

    text_encoder_learning_rate: TextEncoderRate = 0.0
    frame_batch_size: int = Field(
        0,
        ge=0,
        description="single frames of other clips beside each batch of clips, whose loss is added "
        "to that of the clips",
    )
    lora: LoraTrainingConfig | None = None


class DistillStageConfig(StageConfig):
    """Stage `distill`: a network that makes in few steps what the key-frame network makes in many.

    It learns from the key-frame network with guidance, so that it needs none itself.
    """

    sampling_steps: PositiveInt = Field(4, description="steps of the exported model by default")
    guidance_scale: float | None = Field(
        None, ge=1, description="guidance that is distilled; null: that of the defaults"
    )
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="between frames, inclusive"
    )
    diagonal_prob: Share = Field(
        0.5, description="share of samples that learn the direction alone, over no interval"
    )
    to_data_prob: Share = Field(
        0.25, description="share of samples whose interval ends at clean latents"
    )
    finite_difference: float = Field(
        0.005, gt=0, le=0.1, description="distance in time of the points of the central difference"
    )
    mode_weight_limit: float | None = Field(
        None, gt=0, description="as in keyframes; null: all temporal modes weigh alike"
    )
    given_frames_prob: Share = Field(
        0.0, description="share of clips whose first frames are given without noise"
    )
    max_given_frames: PositiveInt = Field(
        8, description="most of these frames; in half of such clips it is one"
    )
    motion_dropout: Share = Field(
        0.3, description="share of clips without a motion score, where the network takes one"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> "Self":
        if self.diagonal_prob + self.to_data_prob > 1:
            raise ValueError(
                f"diagonal_prob={self.diagonal_prob} and to_data_prob={self.to_data_prob} are more "
                "than 1 together; make one of both smaller"
            )
        return self


class InterpolationStageConfig(DenoiserStageConfig):
    """Stage `interpolation`: the frames between two key frames."""

    num_inserted: PositiveInt = Field(3, description="new frames between two key frames")
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 2), description="least and largest distance of two frames, in frames of the data"
    )
    max_noise_level: PositiveInt = Field(
        250, le=1000, description="key frames get the noise of a diffusion step below this one"
    )
    clean_prob: Share = Field(0.5, description="fraction of windows whose key frames get no noise")
    attention_levels: tuple[bool, ...] | None = Field(
        None, description="levels of the U-Net with attention; null: as in the denoiser"
    )
    estimate_channels: PositiveInt = Field(
        96, multiple_of=8, description="width of the network that estimates new frames in one pass"
    )
    estimate_blocks: PositiveInt = Field(3, description="its residual blocks")
    denoise_every: PositiveInt = Field(
        1,
        description="the U-Net learns from one window in so many, since it takes dozens of times "
        "as long as the estimate, which learns from all",
    )
    pretrained_lr_scale: Rate = Field(1.0, description="factor of the learning rate for the U-Net")

    @model_validator(mode="after")
    def _divides(self) -> "InterpolationStageConfig":
        if self.batch_size % self.denoise_every:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of "
                f"denoise_every={self.denoise_every}; make it one"
            )
        return self


class VideoVaeStageConfig(StageConfig):
    """Stage `video_vae`: trains the autoencoder's decoder on clips."""

    num_frames: PositiveInt = Field(16, description="frames of a clip")
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="least and largest distance of two frames, in frames of the data"
    )
    temporal_heads: PositiveInt = Field(4, description="attention heads of both new layers")
    temporal_window_size: PositiveInt = Field(
        16, description="frames that a frame attends to, itself included"
    )
    max_latent_noise: float = Field(
        0.15,
        ge=0,
        description="most noise on the latents: what denoisers leave, anew in each frame",
    )
    common_latent_noise: Share = Field(
        0.4, description="share of that noise's variance which all places of a frame have in common"
    )
    clean_prob: Share = Field(0.5, description="fraction of clips whose latents get no noise")
    squared_weight: float = Field(4.0, ge=0, description="weight of the squared error beside L1")
    gradient_weight: float = Field(1.0, ge=0, description="weight of L1 between image gradients")
    perceptual_weight: float = Field(
        1.0, ge=0, description="weight of the perceptual distance by the CLIP image encoder"
    )
    temporal_weight: float = Field(
        1.0, ge=0, description="weight of the L1 error of changes from frame to frame"
    )
    flicker_weight: float = Field(
        0.0, ge=0, description="weight of the mean change where the clip does not change"
    )
    pretrained_lr_scale: float = Field(
        0.1, gt=0, le=1, description="factor of the learning rate for reused weights"
    )


class UpscalerModelConfig(StrictModel):
    """Sizes of `Upscaler`, whose docstring explains them."""

    factor: PositiveInt = 4
    widths: tuple[PositiveInt, ...] = (48, 96, 176)
    num_blocks: tuple[PositiveInt, ...] = (1, 1, 2)


class UpscalerStageConfig(StageConfig):
    """Stage `upscaler`: super-resolution of frames."""

    data: Path = Field(description="prepared frames of the large size")
    crop: PositiveInt = Field(128, description="side of the crops, in pixels of large frames")
    degradation_prob: Share = Field(
        0.5, description="fraction of inputs that are downsampled by another kernel than area"
    )
    vae_roundtrip_prob: Share = Field(0.5, description="fraction of inputs encoded and decoded")
    max_latent_noise: float = Field(
        0.3, ge=0, description="largest standard deviation of noise on their latents"
    )
    max_noise_level: float = Field(
        0.2, gt=0, description="largest standard deviation of noise on all inputs in [-1, 1]"
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
    """Defaults of generation that are stored in the exported model."""

    fps: float = Field(default=8.0, gt=0, description="key frames per second")
    steps: PositiveInt = Field(default=25, description="diffusion steps")
    guidance_scale: float = Field(default=4.0, ge=1)
    guidance_stop: float = Field(
        default=1.0, ge=0, le=1, description="fraction of the steps after which guidance ends"
    )
    scheduler: Literal["ddim", "dpm++"] = "ddim"
    interpolation_steps: PositiveInt = Field(default=8, description="diffusion steps")
    upscaler_steps: PositiveInt = Field(default=2, description="diffusion steps")
    interpolation_noise_level: int = Field(
        default=0, ge=0, lt=1000, description="diffusion step of the noise on key frames"
    )
    upscaler_noise_level: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the noise on frames before they are upscaled",
    )
    license: str | None = Field(default=None, description="of the weights")


class Recipe(StrictModel):
    """One model: its data, where its run goes, and its stages in order.

    `data`, `output` and `init_from` are relative to the folder in which the command is run. `data`
    may also be a folder of shards, or its URL.
    """

    name: str
    data: DataLocation
    output: Path
    init_from: Annotated[
        Path | None,
        BeforeValidator(lambda value: BUNDLED_MODEL if value == "bundled" else value),
    ] = Field(
        default=None,
        description="model folder whose weights the stages begin with; components that no stage "
        "trains come from it as they are; `bundled` is the model that the package has",
    )
    init_components: tuple[ComponentName, ...] | None = Field(
        default=None,
        description="components of `init_from` that are taken, so that stages make the others "
        "anew; null: all",
    )
    init_preset: Literal["stable-diffusion-1"] | None = Field(
        default=None,
        description="model that `init_from` will hold; a dry run takes its sizes before the "
        "folder exists",
    )
    size: FrameSizeSetting | None = Field(
        default=None,
        description="side of the frames in pixels, which the prepared data must have, or width and "
        "height such as 96x64; a dry run without data needs it",
    )
    seed: int = Field(0, ge=0)
    tracker: Literal["tensorboard", "wandb", "none"] = Field(
        default="tensorboard",
        description="where curves and sample sheets go beside the run's files",
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
        """Return the stages that the recipe has, in the order in which they run."""
        found = {name: getattr(self, name) for name in get_args(StageName)}
        return {name: stage for name, stage in found.items() if stage is not None}


def read_recipe(path: Path, changes: list[str], scale: float = 1.0) -> Recipe:
    """Read a recipe and apply changes such as `keyframes.learning_rate=1e-4`.

    Args:
        path: A file, or the name of a recipe that the package has: `emoji`.
        changes: Settings by their dotted names.
        scale: Factor on the updates of all stages, and on those of their warm-up.

    Raises:
        UserError: If the file is missing or not YAML, or names or values are not allowed. It lists
            all of them.
    """
    values = load_yaml(path)
    for change in changes:
        _apply(values, change)
    recipe = parse_recipe(values, str(path))
    return recipe if scale == 1.0 else scale_recipe(recipe, scale)


def scale_recipe(recipe: Recipe, scale: float) -> Recipe:
    """Return a recipe whose stages train `scale` times as many updates, and at least one."""
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
    """Return the recipes that the package has, by name."""
    folder = next((folder for folder in _RECIPES if folder.is_dir()), _RECIPES[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if _is_recipe(path)}


def _is_recipe(path: Path) -> bool:
    """Return whether a file is a recipe of training, and not one of another command."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(values, dict) and ("data" in values or "base" in values)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no disk takes
        return False


def find_recipe(path: Path) -> Path:
    """Return the file of a recipe that is given by its path or by the name of a packaged one.

    Raises:
        UserError: If there is neither; the nearest name is offered.
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
    """Return what a recipe's file says, on top of its `base`, before any of it is checked.

    Raises:
        UserError: If the file is missing, or no mapping in YAML, or is its own base.
    """
    return _load_on_base(path, ())


def _load_on_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    file = find_recipe(path)
    if file.resolve() in above:
        raise UserError(f"The recipe {path} is its own base.")
    try:
        values = yaml.safe_load(read_text(file, MAX_RECIPE_BYTES))
    except TextFileError as error:
        raise UserError(f"The recipe {path} {error}.") from None
    except RecursionError:
        raise UserError(f"The recipe {path} is nested too deeply.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that is none
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
    """Return nested settings of which those of `above` come before those of `below`."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(name), dict)
        merged[name] = deep_merge(below[name], value) if both else value
    return merged


def parse_recipe(values: dict[str, Any], source: str) -> Recipe:
    """Return a recipe out of a mapping; `source` says in a mistake where it is from.

    Raises:
        UserError: If names or values are not allowed; all mistakes are listed.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_describe_mistakes(error, source)) from None


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
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {_short(change)!r}: the value is not valid YAML.") from None
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4 as text, for want of a dot
        with contextlib.suppress(ValueError):
            value = float(value)
    target[last] = value


def _describe_mistakes(error: ValidationError, source: str) -> str:
    """Return one sentence on all that is missing, and one on every other mistake."""
    mistakes = error.errors(include_url=False)
    missing = [_place(m) for m in mistakes if m["type"] == "missing"]
    others = [_describe_mistake(m) for m in mistakes if m["type"] != "missing"]
    sentences = [f"{', '.join(missing)} must be given."] if missing else []
    if len(others) > _MOST_MISTAKES:
        sentences.append(f"There are {len(others) - _MOST_MISTAKES} more mistakes.")
    return f"{source}: " + " ".join([*others[:_MOST_MISTAKES], *sentences])


def _place(mistake: "ErrorDetails") -> str:
    """Return the name of a setting, without the types that pydantic tried for it."""
    names = [str(part) for part in mistake["loc"]]
    return _short(".".join(name for name in names if not _TYPE_TRIED.search(name)))


def _describe_mistake(mistake: "ErrorDetails") -> str:
    place = _place(mistake)
    if mistake["type"] == "extra_forbidden":
        known = _known_names(mistake["loc"][:-1])
        near = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}."
        return f"{place} is not a setting; {hint}"
    if isinstance(mistake["input"], dict):  # settings that do not go together
        return f"{place} does not fit: {mistake['msg'].removeprefix('Value error, ')}."
    reason = _short(mistake["msg"].removeprefix("Value error, "))
    return f"{place}={_REPR.repr(mistake['input'])} does not fit: {reason}."


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

    A recipe with a `base` need not say what its base says, so that nothing is required in it.
    """
    schema = Recipe.model_json_schema()
    schema["title"] = "magicvideo recipe"
    schema["properties"]["base"] = {
        "type": "string",
        "description": "A recipe that this one changes: the name of a packaged one, or a file.",
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for definition in (schema, *schema["$defs"].values()):
        definition.pop("required", None)
        definition["additionalProperties"] = False
    return schema


def recipe_reference() -> str:
    """Return the page of all settings in Markdown."""
    lines = [
        "# Settings of recipes",
        "",
        "Generated by `magicvideo train --reference`; `magicvideo train --schema` prints the same "
        "as JSON schema. A recipe may begin with `base: NAME`, and then says only what differs "
        "from that recipe.",
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
    """Return the nested settings of a field, if it has some."""
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
    # as YAML writes it
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

"""The settings of every stage of a recipe, with their ranges and defaults."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)

from magicvideo.data.shards.dataset import CACHE

Rate: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Precision: TypeAlias = Annotated[
    Literal["no", "bf16", "fp16"],
    # YAML 1.1 reads a bare no as false
    BeforeValidator(lambda value: "no" if value is False else value),
]


class Settings(BaseModel):
    """Settings that refuse unknown names and do not change after they were read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StageSettings(Settings):
    """What every stage has: how long, how fast, and how often it looks up."""

    steps: PositiveInt = Field(description="updates of the weights, in all")
    batch_size: PositiveInt = Field(description="samples of one forward pass on one process")
    balance: Share = Field(
        0.0, description="0: all clips weigh alike; 1: all subjects do, however many clips"
    )
    accumulate: PositiveInt = Field(1, description="forward passes of one update")
    learning_rate: Rate = Field(description="at its height")
    warmup_steps: int = Field(100, ge=0, description="updates of the linear warm-up")
    decay_share: Share = Field(0.2, description="last share of the steps, with a linear decay to 0")
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw", description="adamw_8bit is that of bitsandbytes"
    )
    weight_decay: float = Field(0.01, ge=0)
    beta2: Share = Field(0.99, description="AdamW's second beta")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of an update's gradient")
    ema_decay: Share = Field(0.999, description="of the averaged weights, which are what is kept")
    ema_device: Literal["same", "cpu"] = Field(
        "same", description="of the averages: that of the weights, or the CPU"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="keep inputs of layers alone, and compute the rest again"
    )
    compile: bool = Field(default=False, description="compile the network, block by block")
    mixed_precision: Precision = "no"
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
    attention_heads: PositiveInt | tuple[PositiveInt, ...] = Field(
        default=4, description="one number, or one a level"
    )
    linear_projection: bool = Field(
        default=False,
        description="linear layers around transformers, as Stable Diffusion 2.x has them",
    )
    norm_num_groups: PositiveInt = 16
    num_frames: PositiveInt = 16
    temporal_attention: Literal["directed", "printed", "bidirectional", "none"] = "directed"
    frame_adaptor: bool = True
    spatial_attention: bool = True
    convolutions: Literal["2d", "2+1d", "3d"] = "2d"


class MachineSettings(Settings):
    """What a dry run reckons with. Training itself takes what is there."""

    gpus: PositiveInt = Field(1, description="processes, each with one GPU")
    tflops: float = Field(gt=0, description="of one GPU at its peak, in the recipe's precision")
    utilisation: Share = Field(0.4, gt=0, description="share of the peak that training reaches")
    clips: PositiveInt | None = Field(None, description="in the data, for their size on the disk")


class ShardSettings(Settings):
    """How shards are read, where the recipe's data are shards."""

    window: PositiveInt = Field(
        default=8, description="shards among which clips are shuffled; three times as many are kept"
    )
    cache: Path = Field(default=CACHE, description="folder for shards that are fetched from a URL")


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
    full_noise: Share = Field(0.0, description="share of samples at the last step, beyond chance")


class ImageSettings(DenoiserSettings):
    """Stage `image`: the 2D network on single frames."""


class LoraSettings(Settings):
    """Adapters of low rank that learn while all else rests."""

    rank: PositiveInt = Field(16, description="of the update of each layer")
    alpha: float = Field(16.0, gt=0, description="updates are multiplied by alpha / rank")
    targets: tuple[
        Literal["attention", "feed_forward", "projections", "convolutions", "temporal"], ...
    ] = Field(("attention",), min_length=1, description="layers of the U-Net that get one")


class VideoSettings(DenoiserSettings):
    """Stages `unsupervised` and `keyframes`: the video network on clips."""

    trained: Literal["all", "new"] = Field(
        "all", description="new: what image networks lack, while the image network's weights rest"
    )
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="between frames, inclusive"
    )
    image_condition: Share = Field(
        description="share of samples told by image embeddings, not text"
    )
    reused_rate: float = Field(
        1.0, gt=0, le=1, description="learning rate of reused weights, times"
    )
    deviation_weight: float = Field(
        1.0, gt=0, description="of the error's deviation from its mean over the frames"
    )
    start_share: Share = Field(
        0.0, description="share of the weights it began with in its product's reused weights"
    )


class KeyframesSettings(VideoSettings):
    """Stage `keyframes`, which may make a LoRA of a finished model in place of a new one."""

    lora: LoraSettings | None = None


class InterpolationSettings(DenoiserSettings):
    """Stage `interpolation`: the frames between two key frames."""

    num_inserted: PositiveInt = Field(3, description="new frames between two keys")
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 2), description="between the frames of a window, inclusive"
    )
    max_noise_level: PositiveInt = Field(
        250, le=1000, description="diffusion step below which keys are noised"
    )
    clean: Share = Field(0.5, description="share of windows whose keys get no noise")
    attention_levels: tuple[bool, ...] | None = Field(
        None, description="levels of the U-Net with attention; null: those of the denoiser"
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
    reused_rate: Rate = Field(1.0, description="learning rate of the U-Net, times")

    @model_validator(mode="after")
    def _divides(self) -> "InterpolationSettings":
        if self.batch_size % self.denoise_every:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of "
                f"denoise_every={self.denoise_every}; make it one"
            )
        return self


class VideoVaeSettings(StageSettings):
    """Stage `video_vae`: the autoencoder's decoder on clips."""

    num_frames: PositiveInt = Field(16, description="frames of a clip")
    strides: tuple[PositiveInt, PositiveInt] = Field(
        (1, 4), description="between frames, inclusive"
    )
    temporal_heads: PositiveInt = Field(4, description="attention heads of both new layers")
    temporal_reach: PositiveInt = Field(
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
    clean: Share = Field(0.5, description="share of clips whose latents get no noise")
    squared_weight: float = Field(4.0, ge=0, description="of the squared error, beside L1")
    gradient_weight: float = Field(1.0, ge=0, description="of L1 between image gradients")
    perceptual_weight: float = Field(
        1.0, ge=0, description="of the distance to the CLIP tower's eye, beside L1"
    )
    temporal_weight: float = Field(
        1.0, ge=0, description="of L1 between the changes from frame to frame"
    )
    flicker_weight: float = Field(
        0.0, ge=0, description="of the mean change where nothing of the clip changes"
    )
    reused_rate: float = Field(
        0.1, gt=0, le=1, description="learning rate of reused weights, times"
    )


class UpscalerModelSettings(Settings):
    """Sizes of `Upscaler`, whose docstring explains them."""

    factor: PositiveInt = 4
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

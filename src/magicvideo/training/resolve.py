"""Resolves a recipe into complete settings of each stage; stages never access the recipe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPTextConfig, CLIPVisionConfig

from magicvideo.data.manifest import DATASET, FrameSize, read_info
from magicvideo.data.prepare import parse_size
from magicvideo.data.shards.index import is_shard_location, read_index
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import PatchAutoencoder, vae_scale_factor
from magicvideo.models.pretrained_encoders import FrozenEncoderPaths
from magicvideo.models.video_vae import autoencoder_from_config_meta
from magicvideo.training.components import OUTPUT, PRODUCING_STAGES, ComponentSource, read_config
from magicvideo.training.loader import DataSource
from magicvideo.training.recipe import (
    AutoencoderStageConfig,
    CLIPStageConfig,
    DenoiserStageConfig,
    DistillStageConfig,
    InterpolationStageConfig,
    LoraTrainingConfig,
    NoiseConfig,
    Recipe,
    StageConfig,
    StageName,
    UpscalerStageConfig,
    VideoVaeStageConfig,
)
from magicvideo.training.tasks.clip_model import build_clip_config, clip_image_size

# Networks of Stable Diffusion 1.x, from which the paper initialises its model
_SD_UNET: Mapping[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
_SD_AUTOENCODER: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
# CLIP ViT-L/14, text
_SD_TEXT_ENCODER: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
# CLIP ViT-L/14, images; Stable Diffusion's safety checker contains it
_SD_IMAGE_ENCODER: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "stable-diffusion-1": {
        "vae": {"_class_name": "AutoencoderKL", **_SD_AUTOENCODER},
        "text_encoder": _SD_TEXT_ENCODER,
        "image_encoder": _SD_IMAGE_ENCODER,
        "unet": _SD_UNET,
    }
}
"""Named presets of model sizes: the configuration of each component."""
# settings that the shapes of weights do not determine, with the recipe's names
_COMPARED = {
    "attention_head_dim": "attention_heads",
    "norm_num_groups": "norm_num_groups",
    "use_linear_projection": "linear_projection",
}


def frame_size(recipe: Recipe) -> FrameSize:
    """Return height and width of the frames in pixels, from the prepared data or the recipe.

    Raises:
        UserError: If neither exists, or they differ.
    """
    data, wanted = recipe.data, _recipe_size(recipe)
    if isinstance(data, str) or is_shard_location(data):
        size = read_index(data).info.frame_size
    elif wanted is not None and not (data / DATASET).is_file():
        return wanted
    else:
        size = read_info(data).frame_size
    if wanted not in (None, size):
        raise UserError(
            f"The frames in {recipe.data} have size {size}, but the recipe has size={wanted}; "
            "prepare the data again or change it."
        )
    return size


def _recipe_size(recipe: Recipe) -> FrameSize | None:
    """Return the size in a recipe, given as a side or as width and height."""
    return None if recipe.size is None else parse_size(str(recipe.size))


def large_frame_size(recipe: Recipe, config: UpscalerStageConfig) -> FrameSize:
    """Return the size of the upscaler's large frames, from its data or the small size.

    Raises:
        UserError: If there is no data and the recipe has no `size`.
    """
    small, factor = _recipe_size(recipe), config.model.factor
    if small is not None and not (config.data / DATASET).is_file():
        return FrameSize(factor * small.height, factor * small.width)
    return read_info(config.data).frame_size


def check_frame_size(recipe: Recipe, size: FrameSize) -> None:
    """Check that the networks of a recipe support a frame size.

    Raises:
        UserError: If a side is not a multiple of the autoencoder's patch size, or CLIP's input size
            not a multiple of CLIP's patch size, or not that of the image encoder it starts from.
    """
    _, factor = latent_shape(recipe)
    units = [("the autoencoder", factor, size)]
    if recipe.clip is not None:
        seen = FrameSize(clip_image_size(size), clip_image_size(size))
        units.append(("the image encoder (clip.patch_size)", recipe.clip.patch_size, seen))
    for network, unit, sides in units:
        if any(side % unit for side in sides):
            fitting = FrameSize(*(max(1, round(side / unit)) * unit for side in size))
            raise UserError(
                f"Frames of the size {size} do not fit {network}, which needs multiples of {unit} "
                f"pixels; prepare the data with --size {fitting}."
            )
    if recipe.clip is not None and init_has(recipe, "image_encoder"):
        side = init_config(recipe, "image_encoder").get("image_size")
        if side not in (None, min(size)):
            raise UserError(
                f"The image encoder of init_from={recipe.init_from} sees squares of {side} pixels, "
                f"and stage clip trains it on the shorter side of the frames, {min(size)}; prepare "
                f"the data with --size {side}, or with a longer width or height next to {side}."
            )


def init_has(recipe: Recipe, name: str) -> bool:
    """Return whether the initial model has a component, as far as known."""
    if recipe.init_from is None or not inits_component(recipe, name):
        return False
    if recipe.init_from.is_dir():
        return (recipe.init_from / name).is_dir()
    return name in PRESETS.get(recipe.init_preset or "", {})


def init_config_or_none(recipe: Recipe, name: str) -> dict[str, Any] | None:
    """Return the configuration of a component of `init_from`; None if it lacks it."""
    return init_config(recipe, name) if init_has(recipe, name) else None


def inits_component(recipe: Recipe, name: str) -> bool:
    """Return whether a recipe initializes a component from `init_from`."""
    return recipe.init_components is None or name in recipe.init_components


def init_config(recipe: Recipe, name: str) -> dict[str, Any]:
    """Return the configuration of a component of the initial model.

    If that folder does not exist, `init_preset` gives the configuration.

    Raises:
        UserError: If neither exists.
    """
    if recipe.init_from is None or not inits_component(recipe, name):
        raise UserError(
            f"The recipe {recipe.name} has no stage that trains the component "
            f"{name}, and does not initialize it from a model; add the stage, or "
            "init_from=MODEL_FOLDER."
        )
    if recipe.init_preset is not None and not recipe.init_from.is_dir():
        return dict(PRESETS[recipe.init_preset][name])
    try:
        return read_config(recipe.init_from / name)
    except (OSError, ValueError):
        raise UserError(
            f"init_from={recipe.init_from} has no sizes of {name}: "
            f"{recipe.init_from / name / 'config.json'} is missing or damaged."
        ) from None


def vae_config(recipe: Recipe) -> dict[str, Any]:
    """Return the configuration of the image autoencoder, including its class name."""
    if recipe.autoencoder is None:
        return init_config(recipe, "vae")
    return {"_class_name": PatchAutoencoder.__name__, **recipe.autoencoder.model.model_dump()}


def text_config(recipe: Recipe, size: FrameSize) -> CLIPTextConfig:
    """Return the sizes of the text encoder."""
    if recipe.clip is None:
        return CLIPTextConfig(**_public(init_config(recipe, "text_encoder")))
    towers = build_clip_config(
        recipe.clip, (0, 1, 1), recipe.clip.vocabulary_size, clip_image_size(size)
    )
    return towers.text_config


def vision_config(recipe: Recipe, size: FrameSize) -> CLIPVisionConfig:
    """Return the sizes of the image encoder."""
    if recipe.clip is None:
        return CLIPVisionConfig(**_public(init_config(recipe, "image_encoder")))
    towers = build_clip_config(
        recipe.clip, (0, 1, 1), recipe.clip.vocabulary_size, clip_image_size(size)
    )
    return towers.vision_config


def cross_attention_dim(recipe: Recipe) -> int:
    """Return the width of the condition's tokens, the hidden size of the text encoder."""
    if recipe.clip is not None:
        return recipe.clip.width
    width: int = init_config(recipe, "text_encoder")["hidden_size"]
    return width


def image_embed_dim(recipe: Recipe) -> int:
    """Return the width of the image encoder's embeddings."""
    if recipe.clip is not None:
        return recipe.clip.width
    if not init_has(recipe, "image_encoder"):  # no image condition
        return cross_attention_dim(recipe)
    width: int = init_config(recipe, "image_encoder")["projection_dim"]
    return width


def unet_config(recipe: Recipe, size: FrameSize) -> dict[str, Any]:
    """Return the arguments of `VideoUNet` for a recipe and frame size.

    Raises:
        UserError: If the number of heads does not match the levels, or the initial model has other
            heads, groups or projections.
    """
    settings, levels = recipe.unet, recipe.unet.attention_levels
    if len(_each(settings.attention_heads, len(levels))) != len(levels):
        raise UserError(
            f"unet.attention_heads={settings.attention_heads} does not fit {len(levels)} levels; "
            "give one number, or one per level."
        )
    channels, factor = latent_shape(recipe)
    height, width = (side // factor for side in size)
    config = {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": channels,
        **_block_types(levels),
        "block_out_channels": settings.block_out_channels,
        "layers_per_block": settings.layers_per_block,
        "cross_attention_dim": cross_attention_dim(recipe),
        "attention_head_dim": settings.attention_heads,
        "norm_num_groups": settings.norm_num_groups,
        "use_linear_projection": settings.linear_projection,
        "num_frames": settings.num_frames,
        "temporal_attention": settings.temporal_attention,
        "frame_adaptor": settings.frame_adaptor,
        "spatial_attention": settings.spatial_attention,
        "convolutions": settings.convolutions,
        "motion_condition": settings.motion_condition,
    }
    if init_has(recipe, "unet"):
        if init_config(recipe, "unet").get("flow_map"):
            raise UserError(
                f"init_from={recipe.init_from} is distilled, and distilled networks cannot be "
                "trained further; start from the model that it was distilled from."
            )
        stored = {"use_linear_projection": False, **init_config(recipe, "unet")}
        for name, known_as in _COMPARED.items():
            if _each(stored[name], len(levels)) != _each(config[name], len(levels)):
                raise UserError(
                    f"unet.{known_as} is {config[name]} in the recipe and {stored[name]} in the "
                    f"model to start from, init_from={recipe.init_from}; they must agree."
                )
    return config


def _block_types(levels: Sequence[bool]) -> dict[str, tuple[str, ...]]:
    return {
        "down_block_types": tuple(
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in levels
        ),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)
        ),
    }


def image_unet_config(recipe: Recipe, size: FrameSize) -> dict[str, Any]:
    """Return the arguments of the 2D network, which the image stage trains."""
    config = unet_config(recipe, size)
    return {
        **config,
        "temporal_attention": "none",
        "frame_adaptor": False,
        "convolutions": "2d",
        "motion_condition": False,
    }


def interpolator_config(recipe: Recipe, size: FrameSize) -> dict[str, Any]:
    """Return the arguments of `Interpolator`, most of them from the key-frame network.

    Raises:
        UserError: If the key-frame network is an ablation without interpolator.
    """
    assert recipe.interpolation is not None
    if recipe.unet.convolutions != "2d" or not recipe.unet.spatial_attention:
        raise UserError(
            f"The recipe {recipe.name} has the stage interpolation, which needs a denoiser with "
            "unet.convolutions=2d and unet.spatial_attention=true; remove the stage or these two "
            "settings."
        )
    config = unet_config(recipe, size)
    config["latent_channels"] = config.pop("in_channels")
    for name in (
        "out_channels",
        "num_frames",
        "temporal_attention",
        "spatial_attention",
        "convolutions",
        "motion_condition",
    ):
        del config[name]
    wanted = recipe.interpolation
    levels = wanted.attention_levels or recipe.unet.attention_levels
    if len(levels) != len(recipe.unet.attention_levels):
        raise UserError(
            f"interpolation.attention_levels has {len(levels)} levels, and the denoiser "
            f"{len(recipe.unet.attention_levels)}; the numbers must be equal."
        )
    return {
        **config,
        **_block_types(levels),
        "num_inserted": wanted.num_inserted,
        "estimate_channels": wanted.estimate_channels,
        "estimate_blocks": wanted.estimate_blocks,
    }


def latent_shape(recipe: Recipe) -> tuple[int, int]:
    """Return the channels of the latents, and the pixels per side of one position."""
    if recipe.autoencoder is not None:
        return recipe.autoencoder.model.latent_channels, recipe.autoencoder.model.patch_size
    vae = autoencoder_from_config_meta(init_config(recipe, "vae"))
    return vae.config.latent_channels, vae_scale_factor(vae)


def _each(value: Any, num_levels: int) -> list[Any]:  # noqa: ANN401 - whatever JSON may hold
    """Return a setting for each level."""
    return list(value) if isinstance(value, list | tuple) else [value] * num_levels


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a CLIP configuration without transformers' metadata."""
    notes = ("architectures", "dtype", "torch_dtype", "model_type", "transformers_version")
    return {
        name: value
        for name, value in settings.items()
        if name not in notes and not name.startswith("_")
    }


# settings that LoRA training takes from the adapted model
_ADAPTED = frozenset({"unet", "image_conditioner"})


@dataclass(frozen=True)
class EncoderSources:
    """Sources and sizes of the denoiser's frozen encoders.

    `image_encoder` is None for a model that is conditioned on text only.
    """

    vae: ComponentSource
    text_encoder: ComponentSource
    tokenizer: ComponentSource
    image_encoder: ComponentSource | None
    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig | None

    def paths(self) -> FrozenEncoderPaths:
        """Verify and return their folders."""
        image_encoder = self.image_encoder
        return FrozenEncoderPaths(
            vae=self.vae.path(),
            text_encoder=self.text_encoder.path(),
            tokenizer=self.tokenizer.path(),
            image_encoder=None if image_encoder is None else image_encoder.path(),
        )


@dataclass(frozen=True)
class StagePlan:
    """Complete settings of one stage.

    Attributes:
        name: The stage.
        config: Its settings in the recipe.
        folder: Folder of its log, checkpoints and output.
        seed: Seed of all random numbers.
        data: The training data.
    """

    name: StageName
    config: StageConfig
    folder: Path
    seed: int
    data: DataSource


@dataclass(frozen=True)
class AutoencoderPlan(StagePlan):
    """Settings of stage `autoencoder`; `init` is the initial component, if any."""

    config: AutoencoderStageConfig
    init: Path | None


@dataclass(frozen=True)
class CLIPPlan(StagePlan):
    """Settings of stage `clip`; it is initialized with all three components or none."""

    config: CLIPStageConfig
    init_text_encoder: Path | None
    init_tokenizer: Path | None
    init_image_encoder: Path | None


@dataclass(frozen=True)
class DenoiserPlan(StagePlan):
    """Settings of the stages `image`, `unsupervised` and `keyframes`.

    Attributes:
        noise: The diffusion process.
        encoders: The frozen encoders.
        unet_config: Arguments of the video network.
        image_unet_config: Arguments of the image network that stage `image` trains; else None.
        image_embed_dim: Width of the image encoder's embeddings.
        trains_text_encoder: Whether the text encoder is trained with the denoiser.
        init_unet: Folder of the initial image or video U-Net.
        init_unet_config: Its configuration.
        init_image_conditioner: Folder of the initial image conditioner.
        previous_unet: Output of an earlier stage of this recipe, which overrides `init_unet`.
        previous_image_conditioner: Likewise for the image conditioner.
        lora: LoRA to train instead of the weights.
    """

    config: DenoiserStageConfig
    noise: NoiseConfig
    encoders: EncoderSources
    unet_config: dict[str, Any]
    image_unet_config: dict[str, Any] | None
    image_embed_dim: int
    trains_text_encoder: bool
    init_unet: Path | None
    init_unet_config: Mapping[str, Any] | None
    init_image_conditioner: Path | None
    previous_unet: ComponentSource | None
    previous_image_conditioner: ComponentSource | None
    lora: LoraTrainingConfig | None


@dataclass(frozen=True)
class DistillPlan(StagePlan):
    """Settings of stage `distill`.

    Attributes:
        noise: The diffusion process.
        encoders: The frozen encoders.
        teacher: The key-frame network.
        unet_config: Arguments of the student.
        guidance_scale: Guidance scale of the teacher.
        guidance_stop: Fraction of the steps that use guidance.
    """

    config: DistillStageConfig
    noise: NoiseConfig
    encoders: EncoderSources
    teacher: ComponentSource
    unet_config: dict[str, Any]
    guidance_scale: float
    guidance_stop: float


@dataclass(frozen=True)
class InterpolationPlan(StagePlan):
    """Settings of stage `interpolation`, initialized with the key-frame network `unet`."""

    config: InterpolationStageConfig
    noise: NoiseConfig
    encoders: EncoderSources
    interpolator_config: dict[str, Any]
    unet: ComponentSource
    init: Path | None


@dataclass(frozen=True)
class VideoVaePlan(StagePlan):
    """Settings of stage `video_vae`, initialized with the image autoencoder."""

    config: VideoVaeStageConfig
    vae: ComponentSource
    image_encoder: ComponentSource
    vision_config: CLIPVisionConfig


@dataclass(frozen=True)
class UpscalerPlan(StagePlan):
    """Settings of stage `upscaler`; `data` has large frames."""

    config: UpscalerStageConfig
    vae: ComponentSource
    init: Path | None


def plan_stages(recipe: Recipe, only: StageName | None = None) -> list[StagePlan]:
    """Resolve the settings of all stages of a recipe, or of one, in order.

    Raises:
        UserError: If settings are inconsistent with each other, the data or `init_from`.
    """
    return [plan_stage(recipe, name) for name in recipe.stages() if only in (None, name)]


def plan_stage(recipe: Recipe, name: StageName) -> StagePlan:
    """Resolve the settings of one stage.

    Raises:
        UserError: As `plan_stages`.
    """
    config, folder, seed = recipe.stages()[name], recipe.output / name, recipe.seed
    if isinstance(config, UpscalerStageConfig):
        size = large_frame_size(recipe, config)
        large = DataSource(config.data, size, recipe.shards)
        init = init_component(recipe, "upscaler")
        return UpscalerPlan(name, config, folder, seed, large, image_vae_source(recipe), init)
    size = frame_size(recipe)
    check_frame_size(recipe, size)
    data = DataSource(recipe.data, size, recipe.shards)
    if isinstance(config, AutoencoderStageConfig):
        return AutoencoderPlan(name, config, folder, seed, data, init_component(recipe, "vae"))
    if isinstance(config, CLIPStageConfig):
        towers = [
            init_component(recipe, part) for part in ("text_encoder", "tokenizer", "image_encoder")
        ]
        text_encoder, tokenizer, image_encoder = towers if None not in towers else (None,) * 3
        return CLIPPlan(name, config, folder, seed, data, text_encoder, tokenizer, image_encoder)
    if isinstance(config, VideoVaeStageConfig):
        return VideoVaePlan(
            name,
            config,
            folder,
            seed,
            data,
            image_vae_source(recipe),
            component_source(recipe, "image_encoder"),
            vision_config(recipe, size),
        )
    if isinstance(config, DistillStageConfig):
        return _distill_plan(recipe, config, data)
    if isinstance(config, InterpolationStageConfig):
        return InterpolationPlan(
            name,
            config,
            folder,
            seed,
            data,
            recipe.noise,
            encoder_sources(recipe, size),
            interpolator_config(recipe, size),
            _keyframe_unet(recipe),
            init_component(recipe, "interpolator"),
        )
    assert isinstance(config, DenoiserStageConfig)
    return _denoiser_plan(recipe, name, config, data)


def _denoiser_plan(
    recipe: Recipe, name: StageName, config: DenoiserStageConfig, data: DataSource
) -> DenoiserPlan:
    is_image = name == "image"
    encoders = encoder_sources(recipe, data.size, before=name)
    if encoders.image_encoder is None and getattr(config, "image_condition", 0.0) > 0:
        raise UserError(
            f"{name}.image_condition={getattr(config, 'image_condition', 0.0)} conditions clips on "
            f"image embeddings, and init_from={recipe.init_from} has no image encoder; set "
            f"{name}.image_condition=0, or start from a model that has one."
        )
    stages = recipe.stages()
    previous: StageName | None = None
    if name == "keyframes" and "unsupervised" in stages:
        previous = "unsupervised"
    elif not is_image and "image" in stages:
        previous = "image"
    init = init_component(recipe, "unet")
    return DenoiserPlan(
        name=name,
        config=config,
        folder=recipe.output / name,
        seed=recipe.seed,
        data=data,
        noise=recipe.noise,
        encoders=encoders,
        unet_config=unet_config(recipe, data.size),
        image_unet_config=image_unet_config(recipe, data.size) if is_image else None,
        image_embed_dim=image_embed_dim(recipe),
        trains_text_encoder=_trains_text_encoder(recipe, name),
        init_unet=init,
        init_unet_config=init_config_or_none(recipe, "unet"),
        init_image_conditioner=init_component(recipe, "image_conditioner"),
        previous_unet=_from_stage(recipe, previous, "unet"),
        previous_image_conditioner=_from_stage(
            recipe, previous if previous == "unsupervised" else None, "image_conditioner"
        ),
        lora=lora_config(recipe) if name == "keyframes" else None,
    )


def _distill_plan(recipe: Recipe, config: DistillStageConfig, data: DataSource) -> DistillPlan:
    if lora_config(recipe) is not None:
        raise UserError(
            f"The recipe {recipe.name} has keyframes.lora and distill, which needs full weights; "
            "export the model of the LoRA, and distill it with init_from."
        )
    if "keyframes" in recipe.stages():
        network = unet_config(recipe, data.size)
    else:
        network = _public(init_config(recipe, "unet"))
    if network.get("flow_map"):
        raise UserError(
            f"init_from={recipe.init_from} is already distilled; use the model that it was "
            "distilled from."
        )
    scale = config.guidance_scale
    return DistillPlan(
        "distill",
        config,
        recipe.output / "distill",
        recipe.seed,
        data,
        noise_config(recipe),
        encoder_sources(recipe, data.size),
        _keyframe_unet(recipe),
        {**network, "flow_map": True},
        generation_default(recipe, "guidance_scale") if scale is None else scale,
        generation_default(recipe, "guidance_stop"),
    )


def noise_config(recipe: Recipe) -> NoiseConfig:
    """Return the diffusion process: the recipe's, or that of the initial key-frame network."""
    if recipe.distill is None or "keyframes" in recipe.stages() or recipe.init_from is None:
        return recipe.noise
    if not recipe.init_from.is_dir():  # a preset: a dry run only needs sizes
        return recipe.noise
    index = _read_json(recipe.init_from / "model_index.json")
    process = _read_json(recipe.init_from / "scheduler" / "scheduler_config.json")
    names = ("prediction_type", "beta_schedule", "beta_start", "beta_end")
    return NoiseConfig.model_validate(
        {
            **{name: process[name] for name in names},
            "zero_terminal_snr": process["rescale_betas_zero_snr"],
            "noise_correlation": index.get("noise_correlation", 0.0),
            "noise_decay": index.get("noise_decay", 0.0),
        }
    )


def generation_default(recipe: Recipe, name: str) -> float:
    """Return a default generation setting: the recipe's, or that of `init_from`."""
    own: float = getattr(recipe.defaults, name)
    if name in recipe.defaults.model_fields_set or recipe.init_from is None:
        return own
    file = recipe.init_from / "model_index.json"
    stored = _read_json(file).get("generation_defaults", {}) if file.is_file() else {}
    return float(stored.get(name, own))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{file} is missing or damaged; get a complete copy of the model."
        ) from None
    return values


def _keyframe_unet(recipe: Recipe) -> ComponentSource:
    """Return the source of the key-frame network, before distillation."""
    stages = tuple(name for name in PRODUCING_STAGES["unet"] if name != "distill")
    return _source(recipe, "unet", stages)


def encoder_sources(
    recipe: Recipe, size: FrameSize, before: StageName | None = None
) -> EncoderSources:
    """Return the sources of the denoiser's encoders.

    Args:
        recipe: The recipe.
        size: Height and width of the frames in pixels.
        before: Stage of the denoiser that starts with these encoders; None for the final encoders.
    """
    text_encoder = _text_encoder_source(recipe, before)
    has_image_encoder = "clip" in recipe.stages() or init_has(recipe, "image_encoder")
    return EncoderSources(
        vae=image_vae_source(recipe),
        text_encoder=text_encoder,
        tokenizer=_tokenizer_source(recipe, text_encoder),
        image_encoder=component_source(recipe, "image_encoder") if has_image_encoder else None,
        text_config=text_config(recipe, size),
        vision_config=vision_config(recipe, size) if has_image_encoder else None,
    )


def _trains_text_encoder(recipe: Recipe, name: StageName) -> bool:
    """Return whether a stage trains the text encoder with the denoiser."""
    return getattr(recipe.stages()[name], "text_encoder_learning_rate", 0.0) > 0


def _text_encoder_source(recipe: Recipe, before: StageName | None = None) -> ComponentSource:
    """Return the text encoder of the last stage that trains it, optionally before a stage."""
    stages = list(recipe.stages())
    if before is not None:
        stages = stages[: stages.index(before)]
    trained = [name for name in stages if _trains_text_encoder(recipe, name)]
    return _source(recipe, "text_encoder", (*PRODUCING_STAGES["text_encoder"], *trained))


def _tokenizer_source(recipe: Recipe, text_encoder: ComponentSource) -> ComponentSource:
    """Return the source of the tokenizer, next to the text encoder.

    A preset or a folder of configurations, which suffice for a dry run, have no tokenizer. Training
    then fails when it is loaded.
    """
    if text_encoder.stage is None and not inits_component(recipe, "tokenizer"):
        return component_source(recipe, "tokenizer")  # raises the error for a missing component
    folder = text_encoder.folder.with_name("tokenizer")
    return ComponentSource("tokenizer", folder, {}, text_encoder.stage)


def frozen_encoder_paths(recipe: Recipe) -> FrozenEncoderPaths:
    """Verify and return the folders of the frozen encoders of a run.

    Raises:
        UserError: If a stage is not finished, or files are missing or damaged.
    """
    return encoder_sources(recipe, frame_size(recipe)).paths()


def image_vae_source(recipe: Recipe) -> ComponentSource:
    """Return the source of the autoencoder of all stages' latents.

    Stage `video_vae` only changes its decoder, so no other stage depends on that stage.
    """
    return _source(recipe, "vae", ("autoencoder",))


def component_source(recipe: Recipe, name: str) -> ComponentSource:
    """Return the source of a finished component: the last stage that writes it, or the model.

    Raises:
        UserError: If neither a stage of the recipe nor `init_from` provides it.
    """
    if name == "text_encoder":
        return _text_encoder_source(recipe)
    return _source(recipe, name, PRODUCING_STAGES[name])


def _source(recipe: Recipe, name: str, producers: tuple[StageName, ...]) -> ComponentSource:
    here = [stage for stage in producers if stage in recipe.stages()]
    if name in _ADAPTED and lora_config(recipe) is not None:
        here = []
    if here:
        folder = recipe.output / here[-1] / OUTPUT / name
        config = vae_config(recipe) if name == "vae" else {}
        return ComponentSource(name, folder, config, here[-1])
    folder_or_none = init_component(recipe, name)
    if folder_or_none is None:
        raise UserError(
            f"The recipe {recipe.name} has no stage {' or '.join(producers)}, and no init_from "
            f"whose model has the component {name}; add the stage, or init_from=MODEL_FOLDER."
        )
    config = vae_config(recipe) if name == "vae" else {}
    return ComponentSource(name, folder_or_none, config, None)


def _from_stage(recipe: Recipe, stage: StageName | None, name: str) -> ComponentSource | None:
    if stage is None:
        return None
    return ComponentSource(name, recipe.output / stage / OUTPUT / name, {}, stage)


def init_component(recipe: Recipe, name: str) -> Path | None:
    """Return the folder of a component in `init_from`; None if it lacks the component.

    Raises:
        UserError: If the folder does not exist and `init_preset` is not set.
    """
    model = recipe.init_from
    if model is None:
        return None
    if not model.is_dir() and recipe.init_preset is None:
        raise UserError(f"init_from={model} is not a model folder: it does not exist.")
    return model / name if init_has(recipe, name) else None


def lora_config(recipe: Recipe) -> LoraTrainingConfig | None:
    """Return the settings of LoRA training for `init_from`, or None.

    Raises:
        UserError: If the recipe names no finished model, or also trains its weights.
    """
    config = recipe.keyframes
    if config is None or config.lora is None:
        return None
    if recipe.init_from is None or recipe.image is not None or recipe.unsupervised is not None:
        raise UserError(
            f"keyframes.lora adapts a finished model, and the recipe {recipe.name} "
            f"{'names none' if recipe.init_from is None else 'trains it in another stage'}; set "
            "init_from=MODEL_FOLDER and remove the stages image and unsupervised."
        )
    if config.text_encoder_learning_rate:
        raise UserError(
            f"keyframes.text_encoder_learning_rate={config.text_encoder_learning_rate} does not go "
            "with keyframes.lora, which does not train the text encoder; remove one of them."
        )
    if config.weight_interpolation:
        raise UserError(
            f"keyframes.weight_interpolation={config.weight_interpolation} does not go with "
            "keyframes.lora, which does not train the model's weights; remove one of them."
        )
    if config.trainable != "all":
        raise UserError(
            f"keyframes.trainable={config.trainable} does not go with keyframes.lora, of which "
            "only the LoRA layers are trained; remove one of them."
        )
    return config.lora

"""A recipe resolved into complete settings of each stage, which is all that a stage sees of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPTextConfig, CLIPVisionConfig

from magicvideo.errors import UserError
from magicvideo.models.pretrained_encoders import FrozenEncoderPaths
from magicvideo.training.components import OUTPUT, PRODUCING_STAGES, ComponentSource
from magicvideo.training.loader import DataSource
from magicvideo.training.model_configs import (
    check_frame_size,
    frame_size,
    image_embed_dim,
    image_unet_config,
    init_config_or_none,
    init_has,
    interpolator_config,
    large_frame_size,
    text_config,
    unet_config,
    vae_config,
    vision_config,
)
from magicvideo.training.recipe import (
    AutoencoderStageConfig,
    CLIPStageConfig,
    DenoiserStageConfig,
    InterpolationStageConfig,
    LoraTrainingConfig,
    NoiseConfig,
    Recipe,
    StageConfig,
    StageName,
    UpscalerStageConfig,
    VideoVaeStageConfig,
)

# what a LoRA leaves to the model that it adapts
_ADAPTED = frozenset({"unet", "image_conditioner"})


@dataclass(frozen=True)
class EncoderSources:
    """Where the frozen encoders of the denoiser are read from, and their sizes.

    `image_encoder` is None for a model without one, which is conditioned on text alone.
    """

    vae: ComponentSource
    text_encoder: ComponentSource
    tokenizer: ComponentSource
    image_encoder: ComponentSource | None
    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig | None

    def paths(self) -> FrozenEncoderPaths:
        """Return their verified folders."""
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
        folder: Of its log, checkpoints and output.
        seed: Of all random numbers.
        data: The training data.
    """

    name: StageName
    config: StageConfig
    folder: Path
    seed: int
    data: DataSource


@dataclass(frozen=True)
class AutoencoderPlan(StagePlan):
    """Settings of stage `autoencoder`; `init` is the component that it begins with, if any."""

    config: AutoencoderStageConfig
    init: Path | None


@dataclass(frozen=True)
class CLIPPlan(StagePlan):
    """Settings of stage `clip`; it begins with all three components or with none."""

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
        init_unet: Folder of the U-Net that the weights begin with, of images or of videos.
        init_unet_config: Its settings.
        init_image_conditioner: The same of the image conditioner.
        previous_unet: What an earlier stage of this recipe wrote, which comes before `init_unet`.
        previous_image_conditioner: The same of the image conditioner.
        lora: Trains a LoRA and leaves the weights as they are.
    """

    config: DenoiserStageConfig
    noise: NoiseConfig
    encoders: EncoderSources
    unet_config: dict[str, Any]
    image_unet_config: dict[str, Any] | None
    image_embed_dim: int
    init_unet: Path | None
    init_unet_config: Mapping[str, Any] | None
    init_image_conditioner: Path | None
    previous_unet: ComponentSource | None
    previous_image_conditioner: ComponentSource | None
    lora: LoraTrainingConfig | None


@dataclass(frozen=True)
class InterpolationPlan(StagePlan):
    """Settings of stage `interpolation`, which begins with the key-frame network `unet`."""

    config: InterpolationStageConfig
    noise: NoiseConfig
    encoders: EncoderSources
    interpolator_config: dict[str, Any]
    unet: ComponentSource
    init: Path | None


@dataclass(frozen=True)
class VideoVaePlan(StagePlan):
    """Settings of stage `video_vae`, which begins with the image autoencoder."""

    config: VideoVaeStageConfig
    vae: ComponentSource
    image_encoder: ComponentSource
    vision_config: CLIPVisionConfig


@dataclass(frozen=True)
class UpscalerPlan(StagePlan):
    """Settings of stage `upscaler`; `data` are its large frames."""

    config: UpscalerStageConfig
    vae: ComponentSource
    init: Path | None


def plan_stages(recipe: Recipe, only: StageName | None = None) -> list[StagePlan]:
    """Return the settings of a recipe's stages, or of one of them, in order.

    Raises:
        UserError: If settings do not fit each other, the data or the model of `init_from`.
    """
    return [plan_stage(recipe, name) for name in recipe.stages() if only in (None, name)]


def plan_stage(recipe: Recipe, name: StageName) -> StagePlan:
    """Return the complete settings of one stage.

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
            component_source(recipe, "unet"),
            init_component(recipe, "interpolator"),
        )
    assert isinstance(config, DenoiserStageConfig)
    return _denoiser_plan(recipe, name, config, data)


def _denoiser_plan(
    recipe: Recipe, name: StageName, config: DenoiserStageConfig, data: DataSource
) -> DenoiserPlan:
    is_image = name == "image"
    encoders = encoder_sources(recipe, data.size)
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
        init_unet=init,
        init_unet_config=init_config_or_none(recipe, "unet"),
        init_image_conditioner=init_component(recipe, "image_conditioner"),
        previous_unet=_from_stage(recipe, previous, "unet"),
        previous_image_conditioner=_from_stage(
            recipe, previous if previous == "unsupervised" else None, "image_conditioner"
        ),
        lora=lora_config(recipe) if name == "keyframes" else None,
    )


def encoder_sources(recipe: Recipe, size: int) -> EncoderSources:
    """Return where the frozen encoders of the denoiser are read from."""
    has_image_encoder = "clip" in recipe.stages() or init_has(recipe, "image_encoder")
    return EncoderSources(
        vae=image_vae_source(recipe),
        text_encoder=component_source(recipe, "text_encoder"),
        tokenizer=component_source(recipe, "tokenizer"),
        image_encoder=component_source(recipe, "image_encoder") if has_image_encoder else None,
        text_config=text_config(recipe, size),
        vision_config=vision_config(recipe, size) if has_image_encoder else None,
    )


def frozen_encoder_paths(recipe: Recipe) -> FrozenEncoderPaths:
    """Return the verified folders of the frozen encoders of a run.

    Raises:
        UserError: If a stage is not done, or files are missing or damaged.
    """
    return encoder_sources(recipe, frame_size(recipe)).paths()


def image_vae_source(recipe: Recipe) -> ComponentSource:
    """Return the autoencoder whose latents all stages share.

    Stage `video_vae` starts from it and changes its decoder alone, so that no other stage has to
    wait for that one.
    """
    return _source(recipe, "vae", ("autoencoder",))


def component_source(recipe: Recipe, name: str) -> ComponentSource:
    """Return where a finished component is read from: the last stage that writes it, or the model.

    Raises:
        UserError: If no stage of the recipe writes it and the model of `init_from` lacks it too.
    """
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
    """Return the folder of a component in the model of `init_from`; None if it has none.

    Raises:
        UserError: If there is no such folder, and no `init_preset` that says what is to be in it.
    """
    model = recipe.init_from
    if model is None:
        return None
    if not model.is_dir() and recipe.init_preset is None:
        raise UserError(f"init_from={model} is no model folder: it does not exist.")
    return model / name if init_has(recipe, name) else None


def lora_config(recipe: Recipe) -> LoraTrainingConfig | None:
    """Return the LoRA that a recipe trains for the model of `init_from`; None for none.

    Raises:
        UserError: If the recipe names no finished model, changes it too, or trains it in part.
    """
    config = recipe.keyframes
    if config is None or config.lora is None:
        return None
    if recipe.init_from is None or recipe.image is not None or recipe.unsupervised is not None:
        raise UserError(
            f"keyframes.lora adapts a finished model, and the recipe {recipe.name} "
            f"{'names none' if recipe.init_from is None else 'trains it in another stage'}; set "
            "init_from=MODEL_FOLDER and leave the stages image and unsupervised out."
        )
    if config.weight_interpolation:
        raise UserError(
            f"keyframes.weight_interpolation={config.weight_interpolation} does not go with "
            "keyframes.lora, which leaves the model's weights alone; leave one of both out."
        )
    if config.trainable != "all":
        raise UserError(
            f"keyframes.trainable={config.trainable} does not go with keyframes.lora, of which "
            "only the LoRA layers are trained; leave one of both out."
        )
    return config.lora

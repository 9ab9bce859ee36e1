"""Sizes of the networks of a recipe: of its stages, and of the model that it starts from.

A model to start from is asked for its settings alone, and only for those that no stage decides. So
`--dry-run` needs no weights, and not even the folder where the recipe says what is to be in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CLIPTextConfig, CLIPVisionConfig

from magicvideo.data.manifest import DATASET, read_info
from magicvideo.data.shards.index import is_shard_location, read_index
from magicvideo.errors import UserError
from magicvideo.models import sd_presets
from magicvideo.models.autoencoder import PatchAutoencoder, vae_scale_factor
from magicvideo.models.video_vae import autoencoder_from_config_meta
from magicvideo.training.components import read_config
from magicvideo.training.recipe import Recipe, UpscalerStageConfig
from magicvideo.training.tasks.clip_model import build_clip_config

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "stable-diffusion-1": {
        "vae": {"_class_name": "AutoencoderKL", **sd_presets.AUTOENCODER},
        "text_encoder": sd_presets.TEXT_ENCODER,
        "image_encoder": sd_presets.IMAGE_ENCODER,
        "unet": sd_presets.UNET,
    }
}
"""Settings of models to start from that have a name, by component."""
# what shapes of weights do not show, or show without a reason, and the recipe's names for it
_COMPARED = {
    "attention_head_dim": "attention_heads",
    "norm_num_groups": "norm_num_groups",
    "use_linear_projection": "linear_projection",
}


def frame_size(recipe: Recipe) -> int:
    """Return the side of the frames in pixels: that of the prepared data, or the recipe's.

    Raises:
        UserError: If neither is there, or they differ.
    """
    data = recipe.data
    if isinstance(data, str) or is_shard_location(data):
        size = read_index(data).info.size
    elif recipe.size is not None and not (data / DATASET).is_file():
        return recipe.size
    else:
        size = read_info(data).size
    if recipe.size not in (None, size):
        raise UserError(
            f"The frames in {recipe.data} have {size} pixels a side and the recipe says "
            f"size={recipe.size}; prepare the data anew or change it."
        )
    return size


def large_frame_size(recipe: Recipe, config: UpscalerStageConfig) -> int:
    """Return the side of the upscaler's frames: that of its data, or the small side enlarged.

    Raises:
        UserError: If there are no data and the recipe has no `size`.
    """
    if recipe.size is not None and not (config.data / DATASET).is_file():
        return config.model.factor * recipe.size
    return read_info(config.data).size


def check_frame_size(recipe: Recipe, size: int) -> None:
    """Refuse frames that the networks of a recipe cannot take.

    Raises:
        UserError: If the side is no multiple of a patch of an encoder, or its latents cannot be
            halved as often as the U-Net does.
    """
    _, factor = latent_shape(recipe)
    units = {"the autoencoder": factor}
    if recipe.clip is not None:
        units["the image encoder (clip.patch_size)"] = recipe.clip.patch_size
    for network, unit in units.items():
        if size % unit:
            raise UserError(
                f"Frames of {size} pixels a side do not fit {network}, which takes multiples of "
                f"{unit}; prepare the data with --size {max(1, round(size / unit)) * unit}."
            )


def init_has(recipe: Recipe, name: str) -> bool:
    """Return whether the model to start from has a component, so far as it can be known."""
    if recipe.init_from is None or not inits_component(recipe, name):
        return False
    if recipe.init_from.is_dir():
        return (recipe.init_from / name).is_dir()
    return name in PRESETS.get(recipe.init_preset or "", {})


def init_config_or_none(recipe: Recipe, name: str) -> dict[str, Any] | None:
    """Return the settings of a component of the model of `init_from`; None if it has none."""
    return init_config(recipe, name) if init_has(recipe, name) else None


def inits_component(recipe: Recipe, name: str) -> bool:
    """Return whether a recipe begins with a component of `init_from`, where that has it."""
    return recipe.init_components is None or name in recipe.init_components


def init_config(recipe: Recipe, name: str) -> dict[str, Any]:
    """Return the settings of a component of the model to start from.

    Where that folder does not exist they are those that `init_preset` names.

    Raises:
        UserError: If neither tells them.
    """
    if recipe.init_from is None or not inits_component(recipe, name):
        raise UserError(
            f"The recipe {recipe.name} has no stage that makes the part {name} and names no "
            "model to start from that it takes it of; add the stage, or init_from=MODEL_FOLDER."
        )
    if recipe.init_preset is not None and not recipe.init_from.is_dir():
        return dict(PRESETS[recipe.init_preset][name])
    try:
        return read_config(recipe.init_from / name)
    except (OSError, ValueError):
        raise UserError(
            f"init_from={recipe.init_from} does not tell the sizes of {name}: "
            f"{recipe.init_from / name / 'config.json'} is missing or damaged."
        ) from None


def vae_config(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the image autoencoder of a recipe, with the name of its class."""
    if recipe.autoencoder is None:
        return init_config(recipe, "vae")
    return {"_class_name": PatchAutoencoder.__name__, **recipe.autoencoder.model.model_dump()}


def text_config(recipe: Recipe, image_size: int) -> CLIPTextConfig:
    """Return the sizes of the text encoder."""
    if recipe.clip is None:
        return CLIPTextConfig(**_public(init_config(recipe, "text_encoder")))
    towers = build_clip_config(recipe.clip, (0, 1, 1), recipe.clip.vocabulary_size, image_size)
    return towers.text_config


def vision_config(recipe: Recipe, image_size: int) -> CLIPVisionConfig:
    """Return the sizes of the image encoder."""
    if recipe.clip is None:
        return CLIPVisionConfig(**_public(init_config(recipe, "image_encoder")))
    towers = build_clip_config(recipe.clip, (0, 1, 1), recipe.clip.vocabulary_size, image_size)
    return towers.vision_config


def cross_attention_dim(recipe: Recipe) -> int:
    """Return the width of the condition's tokens: that of the text encoder's states."""
    if recipe.clip is not None:
        return recipe.clip.width
    width: int = init_config(recipe, "text_encoder")["hidden_size"]
    return width


def image_embed_dim(recipe: Recipe) -> int:
    """Return the width of the image encoder's embeddings."""
    if recipe.clip is not None:
        return recipe.clip.width
    if not init_has(recipe, "image_encoder"):  # nothing is conditioned on images
        return cross_attention_dim(recipe)
    width: int = init_config(recipe, "image_encoder")["projection_dim"]
    return width


def unet_config(recipe: Recipe, image_size: int) -> dict[str, Any]:
    """Return the arguments of `VideoUNet` for a recipe and frames of `image_size` pixels a side.

    Raises:
        UserError: If heads and levels are not as many, or the model to start from has other heads,
            groups or projections.
    """
    settings, levels = recipe.unet, recipe.unet.attention_levels
    if len(_each(settings.attention_heads, len(levels))) != len(levels):
        raise UserError(
            f"unet.attention_heads={settings.attention_heads} does not fit {len(levels)} levels; "
            "give one number, or one for each level."
        )
    channels, factor = latent_shape(recipe)
    config = {
        "sample_size": image_size // factor,
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
    }
    if init_has(recipe, "unet"):
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


def image_unet_config(recipe: Recipe, image_size: int) -> dict[str, Any]:
    """Return the arguments for the 2D network alone, which the image stage trains."""
    config = unet_config(recipe, image_size)
    return {**config, "temporal_attention": "none", "frame_adaptor": False, "convolutions": "2d"}


def interpolator_config(recipe: Recipe, image_size: int) -> dict[str, Any]:
    """Return the arguments of `Interpolator`: the key-frame network's, where it has them.

    Raises:
        UserError: If the key-frame network is one of the ablations that have no interpolator.
    """
    assert recipe.interpolation is not None
    if recipe.unet.convolutions != "2d" or not recipe.unet.spatial_attention:
        raise UserError(
            f"The recipe {recipe.name} has the stage interpolation, which knows no other denoiser "
            "than one with unet.convolutions=2d and unet.spatial_attention=true; leave the stage "
            "or these two settings out."
        )
    config = unet_config(recipe, image_size)
    config["latent_channels"] = config.pop("in_channels")
    for name in (
        "out_channels",
        "num_frames",
        "temporal_attention",
        "spatial_attention",
        "convolutions",
    ):
        del config[name]
    wanted = recipe.interpolation
    levels = wanted.attention_levels or recipe.unet.attention_levels
    if len(levels) != len(recipe.unet.attention_levels):
        raise UserError(
            f"interpolation.attention_levels has {len(levels)} levels, and the denoiser "
            f"{len(recipe.unet.attention_levels)}; give as many."
        )
    return {
        **config,
        **_block_types(levels),
        "num_inserted": wanted.num_inserted,
        "estimate_channels": wanted.estimate_channels,
        "estimate_blocks": wanted.estimate_blocks,
    }


def latent_shape(recipe: Recipe) -> tuple[int, int]:
    """Return the channels of the latents, and the pixels a side of one position."""
    if recipe.autoencoder is not None:
        return recipe.autoencoder.model.latent_channels, recipe.autoencoder.model.patch_size
    vae = autoencoder_from_config_meta(init_config(recipe, "vae"))
    return vae.config.latent_channels, vae_scale_factor(vae)


def _each(value: Any, num_levels: int) -> list[Any]:  # noqa: ANN401 - whatever JSON may hold
    """Return a setting level by level."""
    return list(value) if isinstance(value, list | tuple) else [value] * num_levels


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of CLIP without what its library notes beside them."""
    notes = ("architectures", "dtype", "torch_dtype", "model_type", "transformers_version")
    return {
        name: value
        for name, value in settings.items()
        if name not in notes and not name.startswith("_")
    }

"""The table of stages: what each starts from, what it trains and what stays frozen."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from magicvideo.data.dataset import ClipDataset
from magicvideo.diffusion.noise import generator_for
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import PatchAutoencoder
from magicvideo.models.conditioning import ImageConditioner
from magicvideo.models.denoiser import ConditionedDenoiser
from magicvideo.models.inflate import inflate, is_new
from magicvideo.models.interpolation import Interpolator
from magicvideo.models.unet import VideoUNet
from magicvideo.storage import verify_sums
from magicvideo.train.loop import PRODUCT
from magicvideo.train.recipe import Recipe, StageName
from magicvideo.train.task import Task
from magicvideo.train.tasks.autoencoder import AutoencoderTask
from magicvideo.train.tasks.clip import ClipTask
from magicvideo.train.tasks.denoiser import DenoiserTask, Frozen
from magicvideo.train.tasks.interpolation import InterpolationTask
from magicvideo.train.tasks.upscaler import UpscalerTask


def make_task(recipe: Recipe, name: StageName) -> Task:
    """Return the task of a stage, with the products of the stages before it.

    Raises:
        UserError: If the data cannot be read or a stage before it is not done.
    """
    torch.manual_seed(generator_for(recipe.seed, name, "weights").initial_seed())
    if name == "upscaler":
        assert recipe.upscaler is not None
        vae = PatchAutoencoder.from_pretrained(product_of(recipe, "autoencoder") / "vae")
        large = ClipDataset(recipe.upscaler.data, ("train",))
        return UpscalerTask(recipe.upscaler, vae, large, recipe.seed)
    dataset = ClipDataset(recipe.data, ("train",))
    if name == "autoencoder":
        assert recipe.autoencoder is not None
        return AutoencoderTask(recipe.autoencoder, dataset, recipe.seed)
    if name == "clip":
        assert recipe.clip is not None
        return ClipTask(recipe.clip, dataset, recipe.seed)
    frozen = _frozen(recipe)
    if name == "interpolation":
        assert recipe.interpolation is not None
        interpolator = _interpolator(recipe, dataset.info.size)
        return InterpolationTask(
            interpolator, frozen, recipe.interpolation, recipe.noise, dataset, recipe.seed
        )
    network = _denoiser(recipe, name, dataset.info.size)
    settings = {
        "image": recipe.image,
        "unsupervised": recipe.unsupervised,
        "keyframes": recipe.keyframes,
    }[name]
    assert settings is not None
    return DenoiserTask(network, frozen, settings, recipe.noise, dataset, recipe.seed)


def product_of(recipe: Recipe, name: StageName) -> Path:
    """Return the checked product of a stage.

    Raises:
        UserError: If the stage is not done or its product is damaged.
    """
    folder = recipe.output / name / PRODUCT
    if not folder.is_dir():
        raise UserError(
            f"Stage {name} is not done: {folder} does not exist; train it first with "
            f"--stage {name}."
        )
    verify_sums(folder)
    return folder


def _frozen(recipe: Recipe) -> Frozen:
    autoencoder, clip = product_of(recipe, "autoencoder"), product_of(recipe, "clip")
    return Frozen(
        vae=PatchAutoencoder.from_pretrained(autoencoder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(clip / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(clip / "tokenizer"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(clip / "image_encoder"),
    )


def _denoiser(recipe: Recipe, name: StageName, image_size: int) -> ConditionedDenoiser:
    """Return the denoiser at the start of a stage.

    The image stage trains the 2D network alone. The first video stage inflates it, and the next
    goes on with what that one made.
    """
    assert recipe.clip is not None
    conditioner = ImageConditioner(recipe.clip.width, recipe.clip.width)
    if name == "image":
        unet = VideoUNet(**image_unet_config(recipe, image_size))
        network = ConditionedDenoiser(unet, conditioner)
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(not is_new(key) and not key.startswith("image_conditioner"))
        return network
    unet = VideoUNet(**unet_config(recipe, image_size))
    if name == "keyframes" and recipe.unsupervised is not None:
        start = product_of(recipe, "unsupervised")
        unet = VideoUNet.from_pretrained(start / "unet")
        conditioner = ImageConditioner.from_pretrained(start / "image_conditioner")
    else:
        weights = product_of(recipe, "image") / "unet" / "diffusion_pytorch_model.safetensors"
        image_weights = load_file(weights)
        inflate(unet, {key: value for key, value in image_weights.items() if not is_new(key)})
    settings = recipe.unsupervised if name == "unsupervised" else recipe.keyframes
    assert settings is not None
    for key, parameter in unet.named_parameters():
        if not is_new(key):
            parameter.rate = settings.reused_rate
    return ConditionedDenoiser(unet, conditioner)


def _interpolator(recipe: Recipe, image_size: int) -> Interpolator:
    """Return the interpolator at the start: the key-frame network with more input channels."""
    interpolator = Interpolator(**interpolator_config(recipe, image_size))
    start = product_of(recipe, "keyframes")
    interpolator.start_from(VideoUNet.from_pretrained(start / "unet"))
    return interpolator


def unet_config(recipe: Recipe, image_size: int) -> dict[str, Any]:
    """Return the arguments of `VideoUNet` for a recipe and frames of `image_size` pixels a side."""
    assert recipe.autoencoder is not None
    assert recipe.clip is not None
    settings, code = recipe.unet, recipe.autoencoder.model
    levels = settings.attention_levels
    return {
        "sample_size": image_size // code.patch_size,
        "in_channels": code.latent_channels,
        "out_channels": code.latent_channels,
        "down_block_types": tuple(
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in levels
        ),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)
        ),
        "block_out_channels": settings.block_out_channels,
        "layers_per_block": settings.layers_per_block,
        "cross_attention_dim": recipe.clip.width,
        "attention_head_dim": settings.attention_heads,
        "norm_num_groups": settings.norm_num_groups,
        "num_frames": settings.num_frames,
        "temporal_attention": settings.temporal_attention,
        "frame_adaptor": settings.frame_adaptor,
    }


def image_unet_config(recipe: Recipe, image_size: int) -> dict[str, Any]:
    """Return the arguments for the 2D network alone, which the image stage trains."""
    config = unet_config(recipe, image_size)
    return {**config, "temporal_attention": "none", "frame_adaptor": False}


def interpolator_config(recipe: Recipe, image_size: int) -> dict[str, Any]:
    """Return the arguments of `Interpolator`: the key-frame network's, where it has them."""
    assert recipe.interpolation is not None
    config = unet_config(recipe, image_size)
    config["latent_channels"] = config.pop("in_channels")
    for name in ("out_channels", "num_frames", "temporal_attention"):
        del config[name]
    return {**config, "num_inserted": recipe.interpolation.num_inserted}

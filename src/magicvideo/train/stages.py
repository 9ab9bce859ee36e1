"""The table of stages: what each starts from, what it trains and what stays frozen."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from magicvideo.data.dataset import ClipDataset
from magicvideo.diffusion.noise import generator_for
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import PatchAutoencoder, spatial_factor
from magicvideo.models.conditioning import ImageConditioner
from magicvideo.models.denoiser import ConditionedDenoiser
from magicvideo.models.inflate import inflate, is_new
from magicvideo.models.unet import VideoUNet
from magicvideo.storage import verify_sums
from magicvideo.train.loop import PRODUCT
from magicvideo.train.recipe import Recipe, StageName, UNetSettings
from magicvideo.train.task import Task
from magicvideo.train.tasks.autoencoder import AutoencoderTask
from magicvideo.train.tasks.clip import ClipTask
from magicvideo.train.tasks.denoiser import DenoiserTask, Frozen

_IMAGE = {"temporal_attention": "none", "frame_adaptor": False}


def make_task(recipe: Recipe, name: StageName) -> Task:
    """Return the task of a stage, with the products of the stages before it.

    Raises:
        UserError: If the data cannot be read or a stage before it is not done.
    """
    dataset = ClipDataset(recipe.data, ("train",))
    torch.manual_seed(generator_for(recipe.seed, name, "weights").initial_seed())
    if name == "autoencoder":
        assert recipe.autoencoder is not None
        return AutoencoderTask(recipe.autoencoder, dataset, recipe.seed)
    if name == "clip":
        assert recipe.clip is not None
        return ClipTask(recipe.clip, dataset, recipe.seed)
    frozen = _frozen(recipe)
    network = _denoiser(recipe, name, frozen, dataset.info.size)
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


def _denoiser(
    recipe: Recipe, name: StageName, frozen: Frozen, image_size: int
) -> ConditionedDenoiser:
    """Return the denoiser at the start of a stage.

    The image stage trains the 2D network alone. The first video stage inflates it, and the next
    goes on with what that one made.
    """
    config = _unet_config(recipe.unet, frozen, image_size)
    width = frozen.image_encoder.config.projection_dim
    conditioner = ImageConditioner(width, config["cross_attention_dim"])
    if name == "image":
        network = ConditionedDenoiser(VideoUNet(**{**config, **_IMAGE}), conditioner)
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(not is_new(key) and not key.startswith("image_conditioner"))
        return network
    unet = VideoUNet(**config)
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


def _unet_config(settings: UNetSettings, frozen: Frozen, image_size: int) -> dict[str, Any]:
    channels = frozen.vae.config.latent_channels
    levels = settings.attention_levels
    return {
        "sample_size": image_size // spatial_factor(frozen.vae),
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": tuple(
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in levels
        ),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)
        ),
        "block_out_channels": settings.block_out_channels,
        "layers_per_block": settings.layers_per_block,
        "cross_attention_dim": frozen.text_encoder.config.hidden_size,
        "attention_head_dim": settings.attention_heads,
        "norm_num_groups": settings.norm_num_groups,
        "num_frames": settings.num_frames,
        "temporal_attention": settings.temporal_attention,
        "frame_adaptor": settings.frame_adaptor,
    }

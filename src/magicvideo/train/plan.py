"""What a recipe would do, for `--dry-run`: sizes and cost of every stage, without training it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel

from magicvideo.data.manifest import read_info
from magicvideo.models.interpolation import Interpolator
from magicvideo.models.stored_autoencoder import outline_autoencoder
from magicvideo.models.unet import VideoUNet
from magicvideo.models.video_vae import inflate_autoencoder
from magicvideo.train.parts import image_vae
from magicvideo.train.recipe import Recipe, StageName
from magicvideo.train.settings import UpscalerSettings, VideoVaeSettings
from magicvideo.train.stages import (
    condition_length,
    condition_width,
    image_unet_config,
    interpolator_config,
    unet_config,
)
from magicvideo.train.tasks.autoencoder import make_autoencoder
from magicvideo.train.tasks.clip import clip_config
from magicvideo.train.tasks.upscaler import make_upscaler


@dataclass(frozen=True)
class StagePlan:
    """One stage's size.

    Attributes:
        name: The stage.
        parameters: Of its network.
        updates: Of the weights, in all.
        samples: That one process reads, in all.
        gflops: Billions of operations of one sample's forward pass, two for each multiplication
            and addition; norms and activations count nothing.
    """

    name: str
    parameters: int
    updates: int
    samples: int
    gflops: float


def plan(recipe: Recipe) -> list[StagePlan]:
    """Return the size of every stage, counted on the meta device: no memory, no arithmetic.

    Raises:
        UserError: If the prepared data that the recipe names cannot be read.
    """
    size = read_info(recipe.data).size
    plans = []
    for name, settings in recipe.stages().items():
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network = _pass_one_sample(recipe, name, size)
        plans.append(
            StagePlan(
                name=name,
                parameters=sum(parameter.numel() for parameter in network.parameters()),
                updates=settings.steps,
                samples=settings.steps * settings.accumulate * settings.batch_size,
                gflops=counter.get_total_flops() / 1e9,
            )
        )
    return plans


def _pass_one_sample(recipe: Recipe, name: StageName, size: int) -> nn.Module:
    if name == "autoencoder":
        assert recipe.autoencoder is not None
        autoencoder = make_autoencoder(recipe.autoencoder.model)
        autoencoder.decode(autoencoder.encode(torch.empty(1, 3, size, size)).latent_dist.mean)
        return autoencoder
    if name == "video_vae":
        assert recipe.video_vae is not None
        return _pass_one_clip(recipe, recipe.video_vae, size)
    if name == "upscaler":
        assert recipe.upscaler is not None
        return _pass_one_crop(recipe.upscaler)
    tokens = condition_length(recipe)
    if name == "clip":
        assert recipe.clip is not None
        clip = CLIPModel(clip_config(recipe.clip, (0, 1, 1), recipe.clip.vocabulary_size, size))
        ids = torch.zeros(1, tokens, dtype=torch.long)
        clip(input_ids=ids, pixel_values=torch.empty(1, 3, size, size))
        return clip
    if name == "interpolation":
        return _pass_one_window(interpolator_config(recipe, size), tokens)
    is_image = name == "image"
    config = image_unet_config(recipe, size) if is_image else unet_config(recipe, size)
    unet = VideoUNet(**config)
    side, channels = config["sample_size"], config["in_channels"]
    latents = torch.empty(1, 1 if is_image else config["num_frames"], channels, side, side)
    unet(latents, torch.zeros(1), torch.empty(1, tokens, condition_width(recipe)), torch.zeros(1))
    return unet


def _pass_one_clip(recipe: Recipe, settings: VideoVaeSettings, size: int) -> nn.Module:
    image = (
        outline_autoencoder(image_vae(recipe))
        if recipe.autoencoder is None
        else make_autoencoder(recipe.autoencoder.model)
    )
    video = inflate_autoencoder(image, settings.temporal_heads, settings.temporal_reach)
    frames = torch.empty(settings.num_frames, 3, size, size)
    video.decode(video.encode(frames).latent_dist.mean, settings.num_frames)
    return video


def _pass_one_crop(settings: UpscalerSettings) -> nn.Module:
    upscaler = make_upscaler(settings.model, settings.max_noise_level)
    side, small = settings.crop, settings.crop // upscaler.config.factor
    frames = torch.empty(1, 3, side, side), torch.empty(1, 3, small, small)
    upscaler(*frames, torch.zeros(1), torch.zeros(1))
    return upscaler


def _pass_one_window(config: dict[str, Any], tokens: int) -> nn.Module:
    interpolator = Interpolator(**config)
    side, channels = config["sample_size"], config["latent_channels"]
    residuals = torch.empty(1, config["num_inserted"], channels, side, side)
    keys = torch.empty(1, 2, channels, side, side)
    step, width = torch.zeros(1), config["cross_attention_dim"]
    interpolator(residuals, step, keys, step, torch.empty(1, tokens, width), step)
    return interpolator

"""The networks that are compared, their widths and their inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from einops import rearrange
from torch import Tensor, nn

from magicvideo.models.unet import VideoUNet
from magicvideo.train.recipe import read_recipe
from magicvideo.train.stages import unet_config

FLOOR = "UNet2DConditionModel"
RECIPE = Path(__file__).parents[1] / "recipes" / "emoji.yaml"
STABLE_DIFFUSION = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "num_frames": 16,
}


@dataclass(frozen=True)
class Size:
    """One width of the networks, the videos that they are given, and how they are timed.

    Attributes:
        label: What the report calls it.
        config: Arguments of `VideoUNet`.
        videos: Videos in a batch.
        frames: Frames of a video.
        side: Side of the latents.
        tokens: Tokens of a condition.
        head_width: Channels of an attention head in ModelScope's network.
        timed_frames: Frames of a video when seconds are measured.
        rounds: Repetitions.
        backward: Whether the backward pass is timed, after a pass to warm up, which a long one
            does not need.
    """

    label: str
    config: dict[str, Any]
    videos: int
    frames: int
    side: int
    tokens: int
    head_width: int
    timed_frames: int
    rounds: int
    backward: bool


def emoji() -> Size:
    """Return the denoiser of the emoji recipe, with two videos."""
    recipe = read_recipe(RECIPE, [])
    assert recipe.clip is not None
    config, tokens = unet_config(recipe, image_size=64), recipe.clip.max_tokens
    return Size("the emoji recipe's width", config, 2, 16, 8, tokens, 32, 16, 8, backward=True)


def stable_diffusion() -> Size:
    """Return the denoiser at the width of Stable Diffusion 1.5, with one video."""
    label = "the width of Stable Diffusion 1.5"
    return Size(label, STABLE_DIFFUSION, 1, 16, 32, 77, 64, 8, 2, backward=False)


class Width(str, Enum):
    """Names of the widths on the command line."""

    EMOJI = "emoji"
    SD = "sd"


SIZES = {Width.EMOJI: emoji, Width.SD: stable_diffusion}


@dataclass(frozen=True)
class Inputs:
    """Noisy latents `b f c h w`, and what conditions them."""

    latents: Tensor
    timestep: Tensor
    tokens: Tensor
    fps: Tensor


@dataclass(frozen=True)
class Network:
    """One network to measure: how it is built for a `VideoUNet`'s arguments, and how called."""

    build: Callable[[Size], nn.Module]
    call: Callable[[nn.Module, Inputs], Tensor]


def _shared(config: dict[str, Any], kind: str) -> dict[str, Any]:
    ours_alone = ("num_frames", "temporal_attention", "frame_adaptor", "attention_head_dim")
    shared = {name: value for name, value in config.items() if name not in ours_alone}
    for name in ("down_block_types", "up_block_types"):
        shared[name] = tuple(block.replace("2D", kind) for block in config[name])
    return shared


def _unet_2d(size: Size) -> nn.Module:
    heads = size.config["attention_head_dim"]
    return UNet2DConditionModel(**_shared(size.config, "2D"), attention_head_dim=heads)


def _animatediff(size: Size) -> nn.Module:
    heads, shared = size.config["attention_head_dim"], _shared(size.config, "Motion")
    return UNetMotionModel(**shared, num_attention_heads=heads, motion_num_attention_heads=heads)


def _modelscope(size: Size) -> nn.Module:
    shared = _shared(size.config, "3D")
    return UNet3DConditionModel(**shared, attention_head_dim=size.head_width)


def _call_ours(network: nn.Module, given: Inputs) -> Tensor:
    return network(given.latents, given.timestep, given.tokens, given.fps)


def _call_2d(network: nn.Module, given: Inputs) -> Tensor:
    frames = given.latents.shape[1]
    latents = rearrange(given.latents, "b f c h w -> (b f) c h w")
    timestep = given.timestep.repeat_interleave(frames)
    return network(latents, timestep, given.tokens.repeat_interleave(frames, dim=0)).sample


def _call_animatediff(network: nn.Module, given: Inputs) -> Tensor:
    latents = rearrange(given.latents, "b f c h w -> b c f h w")
    tokens = given.tokens.repeat_interleave(given.latents.shape[1], dim=0)
    return network(latents, given.timestep, tokens).sample


def _call_modelscope(network: nn.Module, given: Inputs) -> Tensor:
    latents = rearrange(given.latents, "b f c h w -> b c f h w")
    return network(latents, given.timestep, given.tokens).sample


NETWORKS = {
    FLOOR: Network(_unet_2d, _call_2d),
    "VideoUNet (ours)": Network(lambda size: VideoUNet(**size.config), _call_ours),
    "UNetMotionModel": Network(_animatediff, _call_animatediff),
    "UNet3DConditionModel": Network(_modelscope, _call_modelscope),
}


def make_inputs(size: Size, device: str) -> Inputs:
    """Return random inputs."""
    channels, width = size.config["in_channels"], size.config["cross_attention_dim"]
    shape = (size.videos, size.frames, channels, size.side, size.side)
    return Inputs(
        torch.randn(shape, device=device),
        torch.full((size.videos,), 500, device=device),
        torch.randn(size.videos, size.tokens, width, device=device),
        torch.full((size.videos,), 8.0, device=device),
    )

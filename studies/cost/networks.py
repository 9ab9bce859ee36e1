"""The networks to compare: ours, the image network it starts from, and other video networks."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from einops import rearrange
from torch import Tensor, nn

from magicvideo.models.unet import VideoUNet
from magicvideo.training.resolve import PRESETS

FLOOR, OURS = "UNet2DConditionModel", "VideoUNet (ours)"


@dataclass(frozen=True)
class Workload:
    """One size of the networks and of their inputs.

    Attributes:
        config: Arguments of `VideoUNet`.
        videos: Videos per batch.
        frames: Frames per video.
        side: Side of the latents.
        tokens: Number of text tokens.
        head_width: Channels of an attention head in ModelScope's network.
    """

    config: dict[str, Any]
    videos: int
    frames: int
    side: int
    tokens: int
    head_width: int


PAPER = Workload(
    {**PRESETS["stable-diffusion-1"]["unet"], "sample_size": 32, "num_frames": 16},
    videos=1,
    frames=16,
    side=32,
    tokens=77,
    head_width=64,
)
"""16 frames of 256x256 pixels as latents of Stable Diffusion 1.x, with its channels."""


@dataclass(frozen=True)
class Inputs:
    """Noisy latents `b f c h w`, and the conditions."""

    latents: Tensor
    timestep: Tensor
    tokens: Tensor
    fps: Tensor


@dataclass(frozen=True)
class Network:
    """One network to measure: functions that build it for a workload and call it."""

    build: Callable[[Workload], nn.Module]
    call: Callable[[nn.Module, Inputs], Tensor]


def _shared(config: dict[str, Any], kind: str, network: type[nn.Module]) -> dict[str, Any]:
    """Return the arguments that a network shares; the number of heads is named differently."""
    theirs = inspect.signature(network.__init__).parameters.keys()
    shared = {
        name: value
        for name, value in config.items()
        if name in theirs and name != "attention_head_dim"
    }
    for name in ("down_block_types", "up_block_types"):
        shared[name] = tuple(block.replace("2D", kind) for block in config[name])
    return shared


def _unet_2d(work: Workload) -> nn.Module:
    heads = work.config["attention_head_dim"]
    return UNet2DConditionModel(
        **_shared(work.config, "2D", UNet2DConditionModel), attention_head_dim=heads
    )


def _animatediff(work: Workload) -> nn.Module:
    heads = work.config["attention_head_dim"]
    shared = _shared(work.config, "Motion", UNetMotionModel)
    return UNetMotionModel(**shared, num_attention_heads=heads, motion_num_attention_heads=heads)


def _modelscope(work: Workload) -> nn.Module:
    shared = _shared(work.config, "3D", UNet3DConditionModel)
    return UNet3DConditionModel(**shared, attention_head_dim=work.head_width)


def _call_ours(network: nn.Module, inputs: Inputs) -> Tensor:
    return network(inputs.latents, inputs.timestep, inputs.tokens, inputs.fps).sample


def _call_2d(network: nn.Module, inputs: Inputs) -> Tensor:
    frames = inputs.latents.shape[1]
    latents = rearrange(inputs.latents, "b f c h w -> (b f) c h w")
    timestep = inputs.timestep.repeat_interleave(frames)
    return network(latents, timestep, inputs.tokens.repeat_interleave(frames, dim=0)).sample


def _call_animatediff(network: nn.Module, inputs: Inputs) -> Tensor:
    latents = rearrange(inputs.latents, "b f c h w -> b c f h w")
    tokens = inputs.tokens.repeat_interleave(inputs.latents.shape[1], dim=0)
    return network(latents, inputs.timestep, tokens).sample


def _call_modelscope(network: nn.Module, inputs: Inputs) -> Tensor:
    latents = rearrange(inputs.latents, "b f c h w -> b c f h w")
    return network(latents, inputs.timestep, inputs.tokens).sample


NETWORKS = {
    FLOOR: Network(_unet_2d, _call_2d),
    OURS: Network(lambda work: VideoUNet(**work.config), _call_ours),
    "UNetMotionModel": Network(_animatediff, _call_animatediff),
    "UNet3DConditionModel": Network(_modelscope, _call_modelscope),
}


def make_inputs(work: Workload, device: str) -> Inputs:
    """Return random inputs."""
    channels, width = work.config["in_channels"], work.config["cross_attention_dim"]
    shape = (work.videos, work.frames, channels, work.side, work.side)
    return Inputs(
        torch.randn(shape, device=device),
        torch.full((work.videos,), 500, device=device),
        torch.randn(work.videos, work.tokens, width, device=device),
        torch.full((work.videos,), 8.0, device=device),
    )

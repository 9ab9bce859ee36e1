"""Small networks for tests: all sizes differ, and zero-initialised weights are randomised."""

from typing import Any

import torch
from torch import nn

from magicvideo.models.unet import VideoUNet

VIDEOS, FRAMES, HEIGHT, WIDTH, TOKENS = 2, 5, 10, 14, 11
SMALL: dict[str, Any] = {
    "sample_size": 10,
    "in_channels": 3,
    "out_channels": 7,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 12),
    "layers_per_block": 1,
    "cross_attention_dim": 6,
    "attention_head_dim": (2, 3),
    "norm_num_groups": 4,
    "num_frames": FRAMES,
}


@torch.no_grad()
def randomise(network: nn.Module) -> nn.Module:
    """Change every parameter: one that is initialised to zero hides the layers before it."""
    for parameter in network.eval().parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


def make_unet(**changes: Any) -> VideoUNet:
    return randomise(VideoUNet(**{**SMALL, **changes}))


def make_inputs(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH):
    """Noisy latents, timesteps, tokens and frame rates, as the network takes them."""
    return (
        torch.randn(VIDEOS, frames, SMALL["in_channels"], height, width),
        torch.tensor([931, 17]),
        torch.randn(VIDEOS, TOKENS, SMALL["cross_attention_dim"]),
        torch.tensor([8.0, 13.0]),
    )

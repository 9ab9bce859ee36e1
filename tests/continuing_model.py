"""The tiny model trained with given frames and a motion score."""

import torch
from tiny_model import LATENT_CHANNELS, LATENT_SIDE, make_tiny_pipeline

from magicvideo.models.unet import VideoUNet
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

MOST_GIVEN, DECAY = 3, 0.6


def make_continuing_pipeline() -> MagicVideoPipeline:
    """Return a pipeline with random weights that continues frames and is conditioned on motion."""
    tiny = make_tiny_pipeline()
    options = {**tiny.unet.config, "motion_condition": True, "motion_mean": -1.0, "motion_std": 0.5}
    unet = VideoUNet(**{name: value for name, value in options.items() if name[0] != "_"}).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    pipeline = MagicVideoPipeline(
        **{**tiny.components, "unet": unet},
        **{**tiny.parameters, "noise_decay": DECAY, "max_given_frames": MOST_GIVEN},
    )
    pipeline.words = tiny.words
    return pipeline


def frame_latents(seed: int, frames: int = 1) -> torch.Tensor:
    """Return clean latents of some frames."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, frames, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
    return torch.randn(shape, generator=generator)

"""Single stages on a user's own footage: any video file, a few frames of it in memory at a time."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from magicvideo.data.reader import ClipError, read_whole
from magicvideo.diffusion.sampler import make_scheduler
from magicvideo.errors import UserError
from magicvideo.generate.interpolate import interpolate_latents
from magicvideo.generate.padding import pad_to_multiple
from magicvideo.generate.pipeline import MagicVideoPipeline
from magicvideo.generate.upscale import upscale_frames
from magicvideo.models.autoencoder import decode_latents, encode_frames, spatial_factor
from magicvideo.models.conditioning import encode_text
from magicvideo.shapes import Latents, Tokens

_GAPS_AT_ONCE = 15  # the paper's number for one video
_WHITE = 255

Footage: TypeAlias = Float[Tensor, "f 3 h w"]
Progress: TypeAlias = Callable[[str, int, int], None]


def read_footage(path: Path) -> tuple[Footage, float]:
    """Return all frames of a video file, pixels in [-1, 1], and its frames a second.

    Transparent pictures lie on white.

    Raises:
        UserError: If the file cannot be read as a video.
    """
    try:
        clip = read_whole(path)
    except ClipError as error:
        raise UserError(f"{path} cannot be used: {error}.") from None
    pixels = clip.pixels
    if pixels.shape[-1] == 4:
        pixels = np.minimum(pixels[..., :3] + (_WHITE - pixels[..., 3:]), _WHITE)
    frames = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1
    return rearrange(frames, "f h w c -> f c h w"), clip.fps


@torch.no_grad()
def interpolate_footage(
    pipeline: MagicVideoPipeline,
    footage: Footage,
    fps: float,
    *,
    prompt: str = "",
    seed: int = 0,
    num_steps: int | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "all 3 h w"]:
    """Return the footage with new frames between every two of its own.

    All frames, the given ones too, pass through the autoencoder, so that they look alike.

    Args:
        pipeline: A model with an interpolator.
        footage: Two frames or more, pixels in [-1, 1], of any size.
        fps: Its frames a second.
        prompt: What it shows; may be empty.
        seed: Of the noise.
        num_steps: Diffusion steps; by default the model's own.
        progress: Called with a stage, the finished parts and their number.

    Raises:
        UserError: If the model has no interpolator.
    """
    if pipeline.interpolator is None:
        raise UserError("This model has no stage interpolation; name another with --model.")
    height, width = footage.shape[-2:]
    padded = pad_to_multiple(footage, _multiple(pipeline))[None]
    with pipeline.on_hand("text_encoder"):
        tokens = encode_text(pipeline.text_encoder, pipeline.tokenizer, [prompt])
    with pipeline.on_hand("vae"):
        keys = torch.cat(
            [
                encode_frames(pipeline.vae, part.to(pipeline.device))
                for part in torch.split(padded, _GAPS_AT_ONCE, dim=1)
            ],
            dim=1,
        )
    with pipeline.on_hand("interpolator"):
        latents = _fill(pipeline, keys, tokens, fps, seed, num_steps, progress)
    with pipeline.on_hand("vae"):
        return decode_latents(pipeline.vae, latents)[0, :, :, :height, :width].cpu()


def _fill(
    pipeline: MagicVideoPipeline,
    keys: Latents,
    tokens: Tokens,
    fps: float,
    seed: int,
    num_steps: int | None,
    progress: Progress | None,
) -> Float[Tensor, "1 all c h w"]:
    """Return the keys with the latents of new frames between them, some gaps at a time."""
    interpolator = pipeline.interpolator
    assert interpolator is not None
    parts: list[Tensor] = []
    num_gaps = keys.shape[1] - 1
    for first in range(0, num_gaps, _GAPS_AT_ONCE):
        if progress is not None:
            progress("interpolation", first, num_gaps)
        latents = interpolate_latents(
            interpolator,
            make_scheduler(pipeline.scheduler.config, pipeline.config.default_scheduler),
            keys[:, first : first + _GAPS_AT_ONCE + 1],
            tokens,
            fps=fps * (interpolator.config.num_inserted + 1),
            seed=seed,
            num_steps=num_steps or pipeline.config.default_interpolation_steps,
            shared_noise=pipeline.config.shared_noise,
            noise_level=0,  # a camera's frames are clean
        )
        parts.append(latents if not parts else latents[:, 1:])
    return torch.cat(parts, dim=1)


@torch.no_grad()
def upscale_footage(
    pipeline: MagicVideoPipeline,
    footage: Footage,
    *,
    seed: int = 0,
    num_steps: int | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "f 3 tall wide"]:
    """Return the footage at a larger size, frame by frame and tile by tile.

    Args:
        pipeline: A model with an upscaler.
        footage: Pixels in [-1, 1], of any size.
        seed: Of the noise, which is the same in all frames.
        num_steps: Diffusion steps; by default the model's own.
        progress: Called with a stage, the finished steps and their number.

    Raises:
        UserError: If the model has no upscaler.
    """
    if pipeline.upscaler is None or pipeline.upscaler_scheduler is None:
        raise UserError("This model has no stage upscaler; name another with --model.")
    with pipeline.on_hand("upscaler"):
        return upscale_frames(
            pipeline.upscaler,
            make_scheduler(pipeline.upscaler_scheduler.config, pipeline.config.default_scheduler),
            footage[None],
            [seed],
            num_steps=num_steps or pipeline.config.default_upscaler_steps,
            noise_level=0.0,  # a camera's frames are clean
            on_step=None if progress is None else partial(progress, "super-resolution"),
        )[0].cpu()


def _multiple(pipeline: MagicVideoPipeline) -> int:
    """Return what the sides of frames must be multiples of."""
    levels = len(pipeline.unet.config.block_out_channels)
    return int(spatial_factor(pipeline.vae) * 2 ** (levels - 1))

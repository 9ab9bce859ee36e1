"""The ways to enlarge frames that are compared: the network at some number of steps, and resizing.

All are given small frames in 8 bits and give large ones in 8 bits, as files would hold them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from magicvideo.data.degrade import shrink
from magicvideo.diffusion.noise import seeded_generator
from magicvideo.diffusion.sampling import make_scheduler
from magicvideo.errors import UserError
from magicvideo.evaluation.prompt_sets import from_uint8, to_uint8
from magicvideo.models.autoencoder import decode_latents, encode_frames, vae_scale_factor
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.upscale import upscale_frames

SmallVideo: TypeAlias = Float[Tensor, "f 3 h w"]
LargeVideo: TypeAlias = Float[Tensor, "f 3 tall wide"]

BICUBIC, LANCZOS = "bicubic", "Lanczos"
_TILE = 256  # in pixels of the small frame: no more than one for what is measured here


class UpscaleMethod(NamedTuple):
    """One way to enlarge, called with a small video and the seed of its noise."""

    name: str
    enlarge: Callable[[SmallVideo, int], LargeVideo]


def network_method(pipeline: MagicVideoPipeline, num_steps: int) -> UpscaleMethod:
    """Return the way of a model's upscaler, by its default scheduler and noise level.

    Raises:
        UserError: If the model has no upscaler.
    """
    check_upscaler(pipeline)
    named = f"network, {num_steps} step{'s' if num_steps > 1 else ''}"
    return UpscaleMethod(named, partial(_by_network, pipeline, num_steps))


def resize_methods(pipeline: MagicVideoPipeline) -> list[UpscaleMethod]:
    """Return bicubic and Lanczos resizing by a model's factor.

    Raises:
        UserError: If the model has no upscaler.
    """
    factor = check_upscaler(pipeline)
    kernels = {BICUBIC: Image.Resampling.BICUBIC, LANCZOS: Image.Resampling.LANCZOS}
    return [
        UpscaleMethod(name, partial(_by_kernel, factor, kernel)) for name, kernel in kernels.items()
    ]


def with_vae_roundtrip(
    pipeline: MagicVideoPipeline, way: UpscaleMethod, noise: float
) -> UpscaleMethod:
    """Return a way that is shown frames as the model decodes them, in place of clean ones.

    Args:
        pipeline: Its autoencoder encodes and decodes the small frames, as one video.
        way: How they are enlarged then.
        noise: Standard deviation of noise on the latents, in their unit and anew in every frame:
            generated latents are not clean.
    """
    return UpscaleMethod(way.name, partial(_decoded_first, pipeline, way, noise))


def check_vae_divisible(pipeline: MagicVideoPipeline, side: int) -> None:
    """Refuse small frames that a model's autoencoder cannot take.

    Raises:
        UserError: If their side in pixels is no multiple of what one latent stands for.
    """
    multiple = vae_scale_factor(pipeline.vae)
    if side % multiple:
        raise UserError(
            f"The small frames are {side} pixels wide, and this model's autoencoder needs a "
            f"multiple of {multiple}; prepare the large ones with another --size."
        )


def downsample(large: LargeVideo, factor: int) -> SmallVideo:
    """Return frames of a whole fraction of the side, as preparation would have made them.

    Raises:
        UserError: If the side is no multiple of the factor.
    """
    if large.shape[-1] % factor:
        raise UserError(
            f"Frames of {large.shape[-1]} pixels cannot be shrunk {factor} times; prepare them "
            f"with a --size that is a multiple of {factor}."
        )
    return from_uint8(to_uint8(shrink(large, factor)))


def nearest_upsample(
    small: Shaped[Tensor, "*lead h w"], factor: int
) -> Shaped[Tensor, "*lead tall wide"]:
    """Return pixels, or marks of them, each repeated to a square of `factor` a side."""
    return small.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def check_upscaler(pipeline: MagicVideoPipeline) -> int:
    """Return the factor by which a model enlarges.

    Raises:
        UserError: If the model has no upscaler.
    """
    if pipeline.upscaler is None:
        raise UserError("This model has no upscaler; name another with --model.")
    return int(pipeline.upscaler.config.factor)


def upscale(
    pipeline: MagicVideoPipeline, small: SmallVideo, num_steps: int, seed: int, tile: int
) -> LargeVideo:
    """Return frames by a model's upscaler, on the CPU and not yet rounded.

    Args:
        pipeline: A model with an upscaler.
        small: What is enlarged.
        num_steps: Diffusion steps.
        seed: Of the noise.
        tile: Longest side that the network sees at a time, in pixels of the small frames.
    """
    assert pipeline.upscaler is not None
    assert pipeline.upscaler_scheduler is not None
    made = upscale_frames(
        pipeline.upscaler,
        make_scheduler(pipeline.upscaler_scheduler.config, pipeline.config.default_scheduler),
        small[None],
        [seed],
        num_steps=num_steps,
        noise_level=pipeline.config.upscaler_noise_level,
        tile=tile,
    )
    return made[0].cpu()


def _by_network(
    pipeline: MagicVideoPipeline, num_steps: int, small: SmallVideo, seed: int
) -> LargeVideo:
    made = upscale(pipeline, small, num_steps, seed, tile=_TILE)
    return from_uint8(to_uint8(made))


def _decoded_first(
    pipeline: MagicVideoPipeline, way: UpscaleMethod, noise: float, small: SmallVideo, seed: int
) -> LargeVideo:
    latents = encode_frames(pipeline.vae, small[None].to(pipeline.device))
    drawn = torch.randn(latents.shape, generator=seeded_generator("small frames", seed)).to(latents)
    decoded = decode_latents(pipeline.vae, latents + noise * drawn)[0].cpu()
    return way.enlarge(from_uint8(to_uint8(decoded)), seed)


def _by_kernel(factor: int, kernel: Image.Resampling, small: SmallVideo, _seed: int) -> LargeVideo:
    size = (factor * small.shape[-1], factor * small.shape[-2])
    pictures = (Image.fromarray(frame) for frame in to_uint8(small).numpy())
    resized = np.stack([np.asarray(picture.resize(size, kernel)) for picture in pictures])
    return from_uint8(torch.from_numpy(resized))

"""The ways to enlarge frames that are compared: the network at some number of steps, and resizing.

All are given small frames in 8 bits and give large ones in 8 bits, as files would hold them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from magicvideo.data.degrade import shrink
from magicvideo.diffusion.sampler import make_scheduler
from magicvideo.errors import UserError
from magicvideo.evaluate.clips import from_bytes, to_bytes
from magicvideo.generate.pipeline import MagicVideoPipeline
from magicvideo.generate.upscale import upscale_frames

SmallVideo: TypeAlias = Float[Tensor, "f 3 h w"]
LargeVideo: TypeAlias = Float[Tensor, "f 3 tall wide"]

_TILE = 256  # in pixels of the small frame: no more than one for what is measured here


class Way(NamedTuple):
    """One way to enlarge, called with a small video and the seed of its noise."""

    name: str
    enlarge: Callable[[SmallVideo, int], LargeVideo]


def network_at(pipeline: MagicVideoPipeline, num_steps: int) -> Way:
    """Return the way of a model's upscaler, by its default scheduler and noise level.

    Raises:
        UserError: If the model has no upscaler.
    """
    check_upscaler(pipeline)
    named = f"network, {num_steps} step{'s' if num_steps > 1 else ''}"
    return Way(named, partial(_by_network, pipeline, num_steps))


def resizing(pipeline: MagicVideoPipeline) -> list[Way]:
    """Return bicubic and Lanczos resizing by a model's factor.

    Raises:
        UserError: If the model has no upscaler.
    """
    factor = check_upscaler(pipeline)
    kernels = {"bicubic": Image.Resampling.BICUBIC, "Lanczos": Image.Resampling.LANCZOS}
    return [Way(name, partial(_by_kernel, factor, kernel)) for name, kernel in kernels.items()]


def make_small(large: LargeVideo, factor: int) -> SmallVideo:
    """Return frames of a whole fraction of the side, as preparation would have made them.

    Raises:
        UserError: If the side is no multiple of the factor.
    """
    if large.shape[-1] % factor:
        raise UserError(
            f"Frames of {large.shape[-1]} pixels cannot be shrunk {factor} times; prepare them "
            f"with a --size that is a multiple of {factor}."
        )
    return from_bytes(to_bytes(shrink(large, factor)))


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
    return from_bytes(to_bytes(made))


def _by_kernel(factor: int, kernel: Image.Resampling, small: SmallVideo, _seed: int) -> LargeVideo:
    size = (factor * small.shape[-1], factor * small.shape[-2])
    pictures = (Image.fromarray(frame) for frame in to_bytes(small).numpy())
    resized = np.stack([np.asarray(picture.resize(size, kernel)) for picture in pictures])
    return from_bytes(torch.from_numpy(resized))

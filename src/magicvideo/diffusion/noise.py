"""Noise that depends on the video, not on the batch in which it is generated."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents


def seeded_generator(*parts: int | str) -> torch.Generator:
    """Return a generator on the CPU whose stream is a pure function of `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def per_sample_generators(first: int, count: int, *parts: int | str) -> StackedGenerator:
    """Return the draws of `count` samples from position `first` on of an endless order.

    The numbers of a sample are a pure function of `parts` and its position, so they are the same
    in every process and batch.
    """
    return StackedGenerator(
        [seeded_generator(*parts, position) for position in range(first, first + count)]
    )


def correlated_noise(
    shape: tuple[int, ...],
    generator: StackedGenerator,
    noise_correlation: float = 0.0,
    noise_decay: float = 0.0,
) -> Latents:
    """Return standard normal noise for videos, correlated over their frames.

    The noise of two frames that lie k apart has the correlation c + (1 - c) a^k, with c the
    `noise_correlation` and a the `noise_decay`. Both 0 is the paper's independent noise. A part c
    of the variance that all frames share leaves motion, and not identity, for the temporal
    attention to learn (mixed noise of Ge et al., 2305.10474, section 4.1). The rest decays over
    time, as the latents of real clips do: then slow motion has as large a part of the noise as of
    the data, and is not hidden below it.

    Frames are drawn in order (an autoregressive process), so a longer video of the same seed and
    length of frames begins with the same covariance, whatever its length.

    Args:
        shape: Of the latents, `b f c h w`.
        generator: What the noise is drawn from.
        noise_correlation: Fraction of the variance that all frames of a video share, from 0 to 1.
        noise_decay: Correlation of the remaining noise of adjacent frames, from 0 up to below 1.
    """
    noise = generator.normal(shape)
    if noise_decay:
        # x_i = a x_{i-1} + sqrt(1 - a^2) n_i keeps unit variance and has the correlation a^k
        for i in range(1, shape[1]):
            noise[:, i].mul_((1 - noise_decay**2) ** 0.5).add_(noise[:, i - 1], alpha=noise_decay)
    if noise_correlation == 0.0:
        return noise
    common = generator.normal((shape[0], 1, *shape[2:]))
    return noise.mul_((1 - noise_correlation) ** 0.5).add_(common, alpha=noise_correlation**0.5)


def noise_covariance(
    num_frames: int, noise_correlation: float, noise_decay: float
) -> Float[Tensor, "f f"]:
    """Return the covariance over frames of `correlated_noise`, in double precision."""
    frame = torch.arange(num_frames, dtype=torch.float64)
    apart = (frame[:, None] - frame).abs()
    # 0 ** 0 is 1: without decay the remaining noise is independent
    return noise_correlation + (1 - noise_correlation) * noise_decay**apart


def window_parts(window: int) -> tuple[int | str, ...]:
    """Return what a window of a long video adds to the parts of a seed; the first adds nothing."""
    return ("window", window) if window else ()


def initial_latent_noise(
    seed: int,
    shape: tuple[int, ...],
    noise_correlation: float = 0.0,
    noise_decay: float = 0.0,
    window: int = 0,
) -> Latents:
    """Return the noise of one video, the same on every machine for the same seed.

    Args:
        seed: The video's.
        shape: Of its latents, `f c h w`.
        noise_correlation: As for `correlated_noise`.
        noise_decay: As for `correlated_noise`.
        window: Which window of a long video it is for; each has noise of its own.

    Returns:
        Noise, `1 f c h w`.
    """
    generator = StackedGenerator([seeded_generator("video", seed, *window_parts(window))])
    return correlated_noise((1, *shape), generator, noise_correlation, noise_decay)

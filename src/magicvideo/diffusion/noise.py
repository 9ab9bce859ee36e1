"""Noise that is a function of the video's seed and independent of the batch."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents


def seeded_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by a hash of `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def per_sample_generators(first: int, count: int, *parts: int | str) -> StackedGenerator:
    """Return generators for `count` samples at positions from `first` in an endless order.

    The random numbers of a sample are a function of `parts` and its position, so they are the same
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

    The noise of two frames at distance k has correlation c + (1 - c) a^k, with c =
    `noise_correlation` and a = `noise_decay`. With both 0 it is the paper's independent noise. If
    all frames share the fraction c of the variance, temporal attention need not learn identity and
    can learn motion (mixed noise of Ge et al., 2305.10474, section 4.1). The correlation of the
    rest decays over time like that of latents of real clips, so the noise has the same share of
    slow motion as the data.

    The process is autoregressive and stationary, so the covariance of frames does not depend on the
    length of the video.

    Args:
        shape: Shape of the latents, `b f c h w`.
        generator: Source of the random numbers.
        noise_correlation: Fraction of the variance shared by all frames of a video, in [0, 1].
        noise_decay: Correlation of the remaining noise between adjacent frames, in [0, 1).
    """
    noise = generator.normal(shape)
    if noise_decay:
        # AR(1) process: x_i = a x_{i-1} + sqrt(1 - a^2) n_i has unit variance and correlation a^k
        for i in range(1, shape[1]):
            noise[:, i].mul_((1 - noise_decay**2) ** 0.5).add_(noise[:, i - 1], alpha=noise_decay)
    if noise_correlation == 0.0:
        return noise
    # sqrt(1 - c) x_i + sqrt(c) x_common has unit variance
    common = generator.normal((shape[0], 1, *shape[2:]))
    return noise.mul_((1 - noise_correlation) ** 0.5).add_(common, alpha=noise_correlation**0.5)


def noise_covariance(
    num_frames: int, noise_correlation: float, noise_decay: float
) -> Float[Tensor, "f f"]:
    """Return the covariance matrix of `correlated_noise` over frames, in float64."""
    frame = torch.arange(num_frames, dtype=torch.float64)
    apart = (frame[:, None] - frame).abs()
    # 0 ** 0 = 1, so with decay 0 the remaining noise is independent
    return noise_correlation + (1 - noise_correlation) * noise_decay**apart


def window_parts(window: int) -> tuple[int | str, ...]:
    """Return the seed parts of a window of a long video; none for the first window."""
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
        seed: Seed of the video.
        shape: Shape of its latents, `f c h w`.
        noise_correlation: As for `correlated_noise`.
        noise_decay: As for `correlated_noise`.
        window: Index of the window in a long video; each window has different noise.

    Returns:
        Noise, `1 f c h w`.
    """
    generator = StackedGenerator([seeded_generator("video", seed, *window_parts(window))])
    return correlated_noise((1, *shape), generator, noise_correlation, noise_decay)

"""Noise that belongs to a video, not to the batch that it was made in."""

import hashlib

import torch

from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents


def seeded_generator(*parts: int | str) -> torch.Generator:
    """Return a generator on the CPU whose stream is a pure function of `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def per_sample_generators(first: int, count: int, *parts: int | str) -> StackedGenerator:
    """Return the draws of `count` samples from position `first` on of an endless order.

    A sample's numbers are a pure function of `parts` and its position, so that they are the same
    whichever process has it in whichever batch.
    """
    return StackedGenerator(
        [seeded_generator(*parts, position) for position in range(first, first + count)]
    )


def correlated_noise(
    shape: tuple[int, ...], generator: StackedGenerator, noise_correlation: float = 0.0
) -> Latents:
    """Return standard normal noise for videos, a share of which is the same in all their frames.

    Frames that start from the same noise come out alike, so that motion and not identity is left
    for the temporal attention to learn (the mixed noise of Ge et al., 2305.10474, section 4.1).

    Args:
        shape: Of the latents, `b f c h w`.
        generator: What the noise is drawn from.
        noise_correlation: Fraction of the variance that all frames of a video share, from 0 to 1:
            the correlation between the noise of two frames.
    """
    noise = generator.normal(shape)
    if noise_correlation == 0.0:
        return noise
    common = generator.normal((shape[0], 1, *shape[2:]))
    return noise.mul_((1 - noise_correlation) ** 0.5).add_(common, alpha=noise_correlation**0.5)


def initial_latent_noise(
    seed: int, shape: tuple[int, ...], noise_correlation: float = 0.0
) -> Latents:
    """Return the noise of one video, the same on every machine for the same seed.

    Args:
        seed: The video's.
        shape: Of its latents, `f c h w`.
        noise_correlation: As for `correlated_noise`.

    Returns:
        Noise, `1 f c h w`.
    """
    return correlated_noise(
        (1, *shape), StackedGenerator([seeded_generator("video", seed)]), noise_correlation
    )

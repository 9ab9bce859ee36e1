"""Noise that belongs to a video, not to the batch that it was made in."""

import hashlib

import torch

from magicvideo.rng import Draws
from magicvideo.shapes import Latents


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a generator on the CPU whose stream is a pure function of `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def sample_draws(first: int, count: int, *parts: int | str) -> Draws:
    """Return the draws of `count` samples from position `first` on of an endless order.

    A sample's numbers are a pure function of `parts` and its position, so that they are the same
    whichever process has it in whichever batch.
    """
    return Draws([generator_for(*parts, position) for position in range(first, first + count)])


def draw_noise(shape: tuple[int, ...], draws: Draws, shared: float = 0.0) -> Latents:
    """Return standard normal noise for videos, a share of which is the same in all their frames.

    Frames that start from the same noise come out alike, so that motion and not identity is left
    for the temporal attention to learn (the mixed noise of Ge et al., 2305.10474, section 4.1).

    Args:
        shape: Of the latents, `b f c h w`.
        draws: What the noise is drawn from.
        shared: Share of the variance that the frames of a video have in common, from 0 to 1: the
            correlation between two frames' noise.
    """
    noise = draws.normal(shape)
    if shared == 0.0:
        return noise
    common = draws.normal((shape[0], 1, *shape[2:]))
    return noise.mul_((1 - shared) ** 0.5).add_(common, alpha=shared**0.5)


def noise_for(seed: int, shape: tuple[int, ...], shared: float = 0.0) -> Latents:
    """Return the noise of one video, the same on every machine for the same seed.

    Args:
        seed: The video's.
        shape: Of its latents, `f c h w`.
        shared: As for `draw_noise`.

    Returns:
        Noise, `1 f c h w`.
    """
    return draw_noise((1, *shape), Draws([generator_for("video", seed)]), shared)

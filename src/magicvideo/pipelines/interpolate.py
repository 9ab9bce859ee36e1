"""Interpolation, the second stage: from the latents of key frames to those of all frames."""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from magicvideo.diffusion.noise import correlated_noise, seeded_generator, window_parts
from magicvideo.diffusion.sampling import (
    Scheduler,
    interleave_frames,
    pair_keyframes,
    sample_inbetweens,
)
from magicvideo.models.interpolator import Interpolator
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents, Tokens


def interpolate_latents(
    interpolator: Interpolator,
    scheduler: Scheduler,
    keys: Latents,
    tokens: Tokens,
    *,
    fps: float,
    seed: int,
    num_steps: int,
    noise_correlation: float,
    noise_level: int,
    on_step: Callable[[int], None] | None = None,
    window: int = 0,
) -> Float[Tensor, "1 all c h w"]:
    """Return a video's latents: its key frames unchanged, and new frames between them.

    All pairs of key frames are one batch.

    Args:
        interpolator: The network.
        scheduler: Gives the diffusion steps.
        keys: Latents of the key frames of one video, two or more.
        tokens: Its condition.
        fps: Frames per second of the finished video.
        seed: The video's.
        num_steps: Diffusion steps.
        noise_correlation: Correlation between the noise of two frames, as in training.
        noise_level: Diffusion step up to which the network's view of the key frames is noised
            (conditioning augmentation), so that it does not take errors of generated key frames
            for motion.
        on_step: Called with the number of finished steps.
        window: Which window of a long video the key frames are of; each has noise of its own.
    """
    gaps, inserted = keys.shape[1] - 1, interpolator.config.num_inserted
    generator = seeded_generator("interpolation", seed, *window_parts(window))
    noise = correlated_noise(
        (1, gaps * inserted, *keys.shape[2:]), StackedGenerator([generator]), noise_correlation
    )
    noise = rearrange(noise, "1 (g k) c h w -> g k c h w", g=gaps).to(keys)
    seen = noise_keyframes(keys, scheduler, noise_level, generator)
    new = sample_inbetweens(
        interpolator.estimate,
        interpolator.denoise,
        pair_keyframes(keys),
        pair_keyframes(seen),
        noise,
        scheduler,
        num_steps,
        noise_level,
        repeat(tokens, "1 l d -> g l d", g=gaps),
        torch.full((gaps,), fps, device=keys.device),
        on_step,
    )
    return interleave_frames(keys, new)


def noise_keyframes(
    keys: Latents, scheduler: Scheduler, noise_level: int, generator: torch.Generator
) -> Latents:
    """Return key frames noised up to a diffusion step, as the network sees them; at 0 unchanged."""
    if noise_level == 0:
        return keys
    noise = torch.randn(keys.shape, generator=generator).to(keys)
    # x_t = sqrt(a_t) x + sqrt(1 - a_t) noise, whatever form the solver's own add_noise has
    alpha = scheduler.alphas_cumprod.to(keys)[noise_level]
    noisy: Latents = alpha**0.5 * keys + (1 - alpha) ** 0.5 * noise
    return noisy

"""Flow 1, second stage: from key latents to the latents of the whole video."""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from magicvideo.diffusion.noise import correlated_noise, seeded_generator
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
) -> Float[Tensor, "1 all c h w"]:
    """Return a video's latents: its keys unchanged, and new frames in every gap.

    All gaps of the video are one batch.

    Args:
        interpolator: The network.
        scheduler: Tells the diffusion steps.
        keys: Latents of the key frames of one video, two or more.
        tokens: Its condition.
        fps: Frames a second of the finished video.
        seed: The video's.
        num_steps: Diffusion steps.
        noise_correlation: Share of the noise that all frames have, as in training.
        noise_level: Diffusion step up to which the network's view of the keys is noised, which
            lets it tell motion from what is wrong with keys that were themselves made.
        on_step: Called with the number of finished steps.
    """
    gaps, inserted = keys.shape[1] - 1, interpolator.config.num_inserted
    generator = seeded_generator("interpolation", seed)
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
    """Return keys noised up to a diffusion step, as the network sees them; at 0 as they are."""
    if noise_level == 0:
        return keys
    noise = torch.randn(keys.shape, generator=generator).to(keys)
    return scheduler.add_noise(keys, noise, torch.tensor([noise_level], device=keys.device))

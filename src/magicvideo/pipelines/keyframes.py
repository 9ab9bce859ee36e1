"""Key frames of a video of any length, sampled in windows, and interpolation between them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

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
from magicvideo.models.blocks import FrameCache
from magicvideo.models.interpolator import Interpolator
from magicvideo.models.unet import FlowMapUNet, VideoUNet
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents, Tokens

GivenFrames: TypeAlias = Float[Tensor, "b past c h w"]
"""Clean latents of the frames that precede the sampled ones."""


@dataclass(frozen=True)
class Window:
    """Key frames sampled together.

    Attributes:
        index: Index of the window, from 0.
        first: Index in the video of the first sampled frame.
        stop: Index after the last sampled frame.
        num_given: Number of preceding frames given to the denoiser without noise.
    """

    index: int
    first: int
    stop: int
    num_given: int

    @property
    def keys(self) -> slice:
        """Return the key frames whose gaps are interpolated with this window.

        They start with the last key frame of the previous window, to include the gap between
        windows.
        """
        return slice(self.first - 1 if self.index else 0, self.stop)


def plan_windows(
    num_frames: int | None, longest: int, num_given: int, overlap: int
) -> Iterator[Window]:
    """Yield the windows of a video in order.

    The first window starts with the caller's given frames, if any; each following window is given
    the last frames of the previous one.

    Args:
        num_frames: Number of key frames of the video, including given ones; None for no end.
        longest: Maximal number of frames of a window, including given ones.
        num_given: Number of frames given by the caller.
        overlap: Number of given frames of each following window.
    """
    first, given, index = num_given, num_given, 0
    while num_frames is None or first < num_frames or index == 0:
        stop = first + longest - given
        if num_frames is not None:
            stop = min(stop, num_frames)
        yield Window(index, first, stop, given)
        first, given, index = stop, overlap, index + 1


class WindowDenoiser:
    """A U-Net that predicts the new frames of a window, conditioned on given clean frames.

    With directed attention, given frames never depend on later ones. Their keys and values, at
    timestep 0, are therefore computed once for all steps (`VideoUNet.cache_frames`), and a step
    only processes the new frames.

    Args:
        unet: The denoiser.
        given: Clean latents of the frames before the new ones, or None.
        motion: Motion score of the video, or None.
        use_cache: Whether to process given frames once. If False they are processed at every step,
            which gives the same result up to rounding and works without directed attention.
    """

    def __init__(
        self,
        unet: VideoUNet | FlowMapUNet,
        given: GivenFrames | None = None,
        motion: float | None = None,
        *,
        use_cache: bool = True,
    ) -> None:
        self.unet, self.given, self.motion, self.use_cache = unet, given, motion, use_cache
        self._tokens: Tokens | None = None
        self._cache: FrameCache | None = None

    def __call__(self, latents: Tensor, timestep: Tensor, tokens: Tokens, fps: Tensor) -> Tensor:
        """Return the prediction for the new frames, `b f c h w`."""
        motion = None
        if self.motion is not None:
            motion = torch.full((len(latents),), self.motion, device=latents.device)
        if self.given is None:
            return self.unet(latents, timestep, tokens, fps, motion=motion).sample
        given = self.given.expand(len(latents), -1, -1, -1, -1)
        if self.use_cache:
            past = self._cached(given, tokens, fps, motion)
            return self.unet(latents, timestep, tokens, fps, motion=motion, past=past).sample
        count = given.shape[1]
        whole = torch.cat([given.to(latents), latents], dim=1)
        steps = timestep[:, None].repeat(1, whole.shape[1])
        steps[:, :count] = 0
        return self.unet(whole, steps, tokens, fps, motion=motion).sample[:, count:]

    def _cached(
        self, given: GivenFrames, tokens: Tokens, fps: Tensor, motion: Tensor | None
    ) -> FrameCache:
        """Return the cache of the given frames; it is recomputed if the tokens changed."""
        cache, before, count = self._cache, self._tokens, len(tokens)
        if (
            cache is None
            or before is None
            or len(before) < count
            or not torch.equal(before[-count:], tokens)
        ):
            cache = self.unet.cache_frames(given, tokens, fps, motion)
        elif len(before) > count:
            # guidance has stopped: keep only the last condition, the prompt
            cache = cache.select_videos(slice(len(before) - count, None), len(before))
        self._cache, self._tokens = cache, tokens
        return cache


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
        noise_level: Diffusion step up to which the network's input key frames are noised
            (conditioning augmentation), so that it does not interpret errors of generated key
            frames as motion.
        on_step: Called with the number of finished steps.
        window: Index of the window in a long video; each window has different noise.
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
    """Return key frames noised up to a diffusion step; unchanged at 0."""
    if noise_level == 0:
        return keys
    noise = torch.randn(keys.shape, generator=generator).to(keys)
    # x_t = sqrt(a_t) x + sqrt(1 - a_t) noise; add_noise differs between schedulers
    alpha = scheduler.alphas_cumprod.to(keys)[noise_level]
    noisy: Latents = alpha**0.5 * keys + (1 - alpha) ** 0.5 * noise
    return noisy

"""Super-resolution, the last stage: a few frames and one tile at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from magicvideo.diffusion.noise import seeded_generator
from magicvideo.diffusion.sampling import Scheduler, denoising_loop
from magicvideo.errors import UserError
from magicvideo.models.upscaler import Upscaler, upsample_bicubic
from magicvideo.shapes import FoldedFrames, Frames

LargeVideos: TypeAlias = Float[Tensor, "b f rgb tall wide"]
LargeFrames: TypeAlias = Float[Tensor, "n c tall wide"]
FrameBatch: TypeAlias = Float[Tensor, "_ c h w"]
"""A few frames of a video; the last batch may have fewer than the others."""


def pad_to_multiple(frames: FoldedFrames, multiple: int) -> Float[Tensor, "n c tall wide"]:
    """Return frames whose sides are multiples, by repeating their last rows and columns."""
    below, right = (-side % multiple for side in frames.shape[-2:])
    return F.pad(frames, (0, right, 0, below), mode="replicate")


@torch.no_grad()
def upscale_frames(
    upscaler: Upscaler,
    scheduler: Scheduler,
    frames: Frames,
    seeds: Sequence[int],
    *,
    num_steps: int,
    noise_level: float,
    tile: int = 256,
    frames_at_once: int = 4,
    on_step: Callable[[int, int], None] | None = None,
) -> LargeVideos:
    """Return videos of `upscaler.config.factor` times the side, clamped to [-1, 1].

    Source: MagicVideo, super-resolution in pixels. Frames do not see each other; all frames of a
    video start from the same noise, so that what stands still stays still. To rounding, neither
    `tile` nor `frames_at_once` changes the result: they bound the memory.

    Args:
        upscaler: The network. The result is on its device, in single precision.
        scheduler: With the noise schedule that the network was trained with.
        frames: Pixels in [-1, 1], of any size.
        seeds: Of the videos, from which their noise follows.
        num_steps: Diffusion steps. One gives the soft mean of what may be; more, one of those.
        noise_level: Standard deviation of the noise on the small frames as the network sees them,
            from 0 to `upscaler.config.max_noise_level`. The residual is added to frames without it.
        tile: Longest side that the network sees at a time, in pixels of the small frames.
        frames_at_once: How many frames it sees at a time.
        on_step: Called with the number of finished steps, from 0 on, and of all; every
            `frames_at_once` frames have `num_steps` of them.

    Raises:
        UserError: If a value is out of its range.
    """
    _check_work(frames, seeds, frames_at_once)
    videos, length, channels, height, width = frames.shape
    factor = upscaler.config.factor
    total, finished = videos * -(-length // frames_at_once) * num_steps, count()

    def advance(_: int = 0) -> None:
        if on_step is not None:
            on_step(next(finished), total)

    advance()
    shape = (videos, length, channels, factor * height, factor * width)
    large = torch.empty(shape, dtype=torch.float32, device=_compute_device(upscaler, frames))
    for video, seed, place in zip(frames, seeds, large, strict=True):
        batches = upscale_batches(
            upscaler,
            scheduler,
            torch.split(video, frames_at_once),
            seed,
            num_steps=num_steps,
            noise_level=noise_level,
            tile=tile,
            on_step=advance,
        )
        for rows, upscaled in zip(torch.split(place, frames_at_once), batches, strict=True):
            rows.copy_(upscaled)
    return large


def upscale_batches(
    upscaler: Upscaler,
    scheduler: Scheduler,
    batches: Iterable[FrameBatch],
    seed: int,
    *,
    num_steps: int,
    noise_level: float,
    tile: int = 256,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[LargeFrames]:
    """Yield the batches of one video, upscaled, each made when it is asked for.

    Args:
        upscaler: As for `upscale_frames`.
        scheduler: Likewise.
        batches: A few frames each, pixels in [-1, 1], all of one size.
        seed: Of the video.
        num_steps: Diffusion steps.
        noise_level: Standard deviation of the noise on what the network is shown.
        tile: Longest side that the network sees at a time.
        on_step: Called with the number of finished steps of a batch.

    Raises:
        UserError: If a value is out of its range.
    """
    _check_request(upscaler, scheduler, num_steps, noise_level)
    return TiledUpscaler(upscaler, scheduler, num_steps, noise_level, tile, on_step).upscale(
        batches, seed
    )


@dataclass(frozen=True)
class TiledUpscaler:
    """The arguments of `upscale_batches` but for the frames."""

    upscaler: Upscaler
    scheduler: Scheduler
    num_steps: int
    noise_level: float
    tile: int
    on_step: Callable[[int], None] | None

    @torch.no_grad()
    def upscale(self, batches: Iterable[FrameBatch], seed: int) -> Iterator[LargeFrames]:
        """Yield the batches of one video, upscaled."""
        config = self.upscaler.config
        noise: tuple[Tensor, Tensor] | None = None
        for batch in batches:
            small = pad_to_multiple(
                batch.to(_compute_device(self.upscaler, batch), torch.float32),
                self.upscaler.size_divisor,
            )
            if noise is None:
                noise = (
                    _shared_noise(seed, "residual", small, config.factor),
                    _shared_noise(seed, "small", small, 1),
                )
            start, blur = noise
            residuals = self._residuals(small + self.noise_level * blur, start)
            large = upsample_bicubic(small, config.factor) + config.residual_scale * residuals
            height, width = (config.factor * side for side in batch.shape[-2:])
            yield large[..., :height, :width].clamp(-1, 1)

    def _residuals(self, seen: FoldedFrames, noise: Float[Tensor, "1 c tall wide"]) -> LargeFrames:
        """Return the residuals of some frames, at unit variance.

        Tiles are put together again after every step. Sampled to the end one by one, they would
        have to overlap by the network's radius times the number of steps.
        """

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            level, tile = self.noise_level, self.tile
            return predict_tiled(self.upscaler, noisy[0], seen, timestep, level, tile)[None]

        shared = noise.expand(len(seen), -1, -1, -1)[None]
        return denoising_loop(predict, shared, self.scheduler, self.num_steps, self.on_step)[0]


def predict_tiled(
    upscaler: Upscaler,
    noisy: LargeFrames,
    seen: FoldedFrames,
    timestep: Shaped[Tensor, "1"],
    noise_level: float,
    tile: int,
) -> LargeFrames:
    """Return what the network predicts of whole frames, seen in tiles of at most `tile` pixels.

    A tile reaches over its core by the network's radius, and its core is all that is kept, so the
    result is to rounding what the network gives when it sees the whole.

    Raises:
        UserError: If a tile is too small to have a core.
    """
    dtype, factor = upscaler.dtype, upscaler.config.factor
    steps = timestep.expand(len(seen))
    levels = torch.full((len(seen),), noise_level, device=seen.device)
    whole = torch.empty_like(noisy)
    rows, columns = (list(_spans(side, tile, upscaler)) for side in seen.shape[-2:])
    for row, column in product(rows, columns):
        made = upscaler(
            noisy[..., row.seen(factor), column.seen(factor)].to(dtype),
            seen[..., row.seen(1), column.seen(1)].to(dtype),
            steps,
            levels,
        )
        core = made[..., row.kept(factor), column.kept(factor)]
        whole[..., row.core(factor), column.core(factor)] = core
    return whole


def _compute_device(upscaler: Upscaler, frames: Tensor) -> torch.device:
    """Return where frames are upscaled; offloaded weights are on no device between calls."""
    device: torch.device = upscaler.device
    return frames.device if device.type == "meta" else device


class _Span(NamedTuple):
    """One tile along one axis, in pixels of the small frame: what is seen, and its core."""

    first: int
    core_first: int
    core_last: int
    last: int

    def seen(self, factor: int) -> slice:
        return slice(factor * self.first, factor * self.last)

    def core(self, factor: int) -> slice:
        return slice(factor * self.core_first, factor * self.core_last)

    def kept(self, factor: int) -> slice:
        """Return where the core is in what was seen."""
        offset = self.core_first - self.first
        return slice(factor * offset, factor * (offset + self.core_last - self.core_first))


def _spans(side: int, tile: int, upscaler: Upscaler) -> Iterator[_Span]:
    """Yield the tiles along an axis; all borders are multiples, as the network's grid asks."""
    if side <= tile:
        yield _Span(0, 0, side, side)
        return
    least, margin, multiple = upscaler.min_tile_size, upscaler.tile_overlap, upscaler.size_divisor
    if tile < least:
        raise UserError(f"tile={tile} is too small for this upscaler; give {least} or more.")
    core = (tile - 2 * margin) // multiple * multiple
    for first in range(0, side, core):
        last = min(first + core, side)
        yield _Span(max(first - margin, 0), first, last, min(last + margin, side))


def _shared_noise(
    seed: int, purpose: str, small: FoldedFrames, factor: int
) -> Float[Tensor, "1 c tall wide"]:
    """Return the noise that all frames of a video have, drawn whole, whatever its tiles."""
    _, channels, height, width = small.shape
    generator = seeded_generator("upscaler", seed, purpose)
    noise = torch.randn((1, channels, factor * height, factor * width), generator=generator)
    return noise.to(small.device)


def _check_request(
    upscaler: Upscaler, scheduler: Scheduler, num_steps: int, noise_level: float
) -> None:
    most = scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= most:
        raise UserError(f"num_steps={num_steps} of the upscaler is not between 1 and {most}.")
    highest = upscaler.config.max_noise_level
    if not 0 <= noise_level <= highest:
        raise UserError(
            f"noise_level={noise_level} is not between 0 and {highest}, the highest that the "
            "upscaler was trained with."
        )


def _check_work(frames: Frames, seeds: Sequence[int], frames_at_once: int) -> None:
    if len(seeds) != len(frames) or not len(seeds):
        raise UserError(f"{len(frames)} videos have {len(seeds)} seeds; give one for each.")
    if frames_at_once < 1:
        raise UserError(f"frames_at_once={frames_at_once} is not 1 or more.")

"""Super-resolution: a batch of frames and one tile at a time."""

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
"""A batch of frames of a video; the last batch may be smaller."""


def pad_to_multiple(frames: FoldedFrames, multiple: int) -> Float[Tensor, "n c tall wide"]:
    """Pad frames to multiples by repeating their last rows and columns."""
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
    """Upscale videos by `upscaler.config.factor`, clamped to [-1, 1].

    Source: MagicVideo, super-resolution in pixels. Frames are independent; all frames of a video
    start from the same noise, so that static regions stay static. `tile` and `frames_at_once`
    bound memory and do not change the result, up to rounding.

    Args:
        upscaler: The network. The result is on its device, in float32.
        scheduler: Scheduler with the network's training noise schedule.
        frames: Pixels in [-1, 1], of any size.
        seeds: Seed of each video.
        num_steps: Diffusion steps. One step returns the blurred conditional mean; more steps return
            a sample.
        noise_level: Standard deviation of the noise on the network's input frames, from 0 to
            `upscaler.config.max_noise_level`. The residual is added to clean frames.
        tile: Maximal side of a tile, in pixels of the small frames.
        frames_at_once: Number of frames processed at a time.
        on_step: Called with the number of finished steps (from 0) and the total; each batch of
            `frames_at_once` frames has `num_steps` steps.

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
    """Upscale the batches of one video on demand.

    Args:
        upscaler: As for `upscale_frames`.
        scheduler: As for `upscale_frames`.
        batches: Batches of frames, pixels in [-1, 1], all of one size.
        seed: Seed of the video.
        num_steps: Diffusion steps.
        noise_level: Standard deviation of the noise on the network's input frames.
        tile: Maximal side of a tile.
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
    """The arguments of `upscale_batches`, except the frames."""

    upscaler: Upscaler
    scheduler: Scheduler
    num_steps: int
    noise_level: float
    tile: int
    on_step: Callable[[int], None] | None

    @torch.no_grad()
    def upscale(self, batches: Iterable[FrameBatch], seed: int) -> Iterator[LargeFrames]:
        """Upscale the batches of one video."""
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
            # x = up(s) + k r; the noise on s is seen by the network only
            start, blur = noise
            residuals = self._residuals(small + self.noise_level * blur, start)
            large = upsample_bicubic(small, config.factor) + config.residual_scale * residuals
            height, width = (config.factor * side for side in batch.shape[-2:])
            yield large[..., :height, :width].clamp(-1, 1)

    def _residuals(self, seen: FoldedFrames, noise: Float[Tensor, "1 c tall wide"]) -> LargeFrames:
        """Sample the residuals r of some frames, in unit variance.

        Tiles are merged after every step. Sampled separately over all steps, they would have to
        overlap by the receptive radius times the number of steps.
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
    """Predict whole frames in tiles of at most `tile` pixels.

    A tile extends beyond its core by the receptive radius, and only the core is kept, so the result
    equals (up to rounding) the prediction for whole frames.

    Raises:
        UserError: If the tile size leaves no core.
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
    """Return the device of the computation; offloaded weights are on the meta device."""
    device: torch.device = upscaler.device
    return frames.device if device.type == "meta" else device


class _Span(NamedTuple):
    """One tile along one axis, in pixels of the small frame: its extent and its core."""

    first: int
    core_first: int
    core_last: int
    last: int

    def seen(self, factor: int) -> slice:
        return slice(factor * self.first, factor * self.last)

    def core(self, factor: int) -> slice:
        return slice(factor * self.core_first, factor * self.core_last)

    def kept(self, factor: int) -> slice:
        """Return the position of the core in the tile."""
        offset = self.core_first - self.first
        return slice(factor * offset, factor * (offset + self.core_last - self.core_first))


def _spans(side: int, tile: int, upscaler: Upscaler) -> Iterator[_Span]:
    """Yield the tiles along an axis; all borders are multiples of `size_divisor`."""
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
    """Return the noise shared by all frames of a video; it does not depend on the tiles."""
    _, channels, height, width = small.shape
    generator = seeded_generator("upscaler", seed, purpose)
    noise = torch.randn((1, channels, factor * height, factor * width), generator=generator)
    return noise.to(small.device)


def _check_request(
    upscaler: Upscaler, scheduler: Scheduler, num_steps: int, noise_level: float
) -> None:
    most = scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= most:
        raise UserError(f"num_steps={num_steps} of the upscaler must be from 1 to {most}.")
    highest = upscaler.config.max_noise_level
    if not 0 <= noise_level <= highest:
        raise UserError(
            f"noise_level={noise_level} must be from 0 to {highest}, the maximum in training of "
            "the upscaler."
        )


def _check_work(frames: Frames, seeds: Sequence[int], frames_at_once: int) -> None:
    if len(seeds) != len(frames) or not len(seeds):
        raise UserError(f"{len(frames)} videos have {len(seeds)} seeds; give one per video.")
    if frames_at_once < 1:
        raise UserError(f"frames_at_once={frames_at_once} must be 1 or more.")

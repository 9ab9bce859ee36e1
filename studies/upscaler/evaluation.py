"""Evaluate the upscaler: quality, flicker, differences at tile borders, and a comparison sheet."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from magicvideo.data import degrade
from magicvideo.data.dataset import ClipDataset
from magicvideo.diffusion.noise import seeded_generator
from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate, mean, ratio_of_means
from magicvideo.evaluation.metrics.distribution import Features
from magicvideo.evaluation.metrics.image_quality import psnr, ssim
from magicvideo.evaluation.metrics.motion import (
    LEVELS,
    corner_mask,
    flicker,
    static_mask,
    temporal_change,
)
from magicvideo.evaluation.prompt_sets import (
    Prompt,
    from_uint8,
    real_videos,
    sample_prompts,
    to_uint8,
)
from magicvideo.evaluation.sheet import write_sheet
from magicvideo.models.autoencoder import decode_latents, encode_frames, vae_scale_factor
from magicvideo.models.conditioning import embed_frames
from magicvideo.pipelines.request import GenerationSettings
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.upscale import upscale_frames
from studies.paired_comparison import MethodSamples, Rows

SmallVideo: TypeAlias = Float[Tensor, "f 3 h w"]
LargeVideo: TypeAlias = Float[Tensor, "f 3 tall wide"]

BICUBIC, LANCZOS = "bicubic", "Lanczos"
_TILE = 256  # pixels of the small frame; larger than any small frame here, so there is one tile


class UpscaleMethod(NamedTuple):
    """A method of upscaling: a function of a small video and a noise seed."""

    name: str
    enlarge: Callable[[SmallVideo, int], LargeVideo]


def network_method(pipeline: MagicVideoPipeline, num_steps: int) -> UpscaleMethod:
    """Return the method that uses a model's upscaler with its default scheduler and noise level.

    Raises:
        UserError: If the model has no upscaler.
    """
    check_upscaler(pipeline)
    named = f"network, {num_steps} step{'s' if num_steps > 1 else ''}"
    return UpscaleMethod(named, partial(_by_network, pipeline, num_steps))


def resize_methods(pipeline: MagicVideoPipeline) -> list[UpscaleMethod]:
    """Return bicubic and Lanczos resizing by a model's scale factor.

    Raises:
        UserError: If the model has no upscaler.
    """
    factor = check_upscaler(pipeline)
    kernels = {BICUBIC: Image.Resampling.BICUBIC, LANCZOS: Image.Resampling.LANCZOS}
    return [
        UpscaleMethod(name, partial(_by_kernel, factor, kernel)) for name, kernel in kernels.items()
    ]


def with_vae_roundtrip(
    pipeline: MagicVideoPipeline, method: UpscaleMethod, noise: float
) -> UpscaleMethod:
    """Return a method whose input passes through the model's autoencoder first.

    Args:
        pipeline: Its autoencoder encodes and decodes the small frames, as one video.
        method: The method that upscales the decoded frames.
        noise: Standard deviation of the noise that is added to the latents of every frame, relative
            to that of the latents: generated latents contain errors.
    """
    return UpscaleMethod(method.name, partial(_decoded_first, pipeline, method, noise))


def check_vae_divisible(pipeline: MagicVideoPipeline, side: int) -> None:
    """Refuse small frames that a model's autoencoder cannot take.

    Raises:
        UserError: If their side in pixels is not a multiple of the autoencoder's factor.
    """
    multiple = vae_scale_factor(pipeline.vae)
    if side % multiple:
        raise UserError(
            f"The small frames are {side} pixels wide, but this model's autoencoder requires a "
            f"multiple of {multiple}; prepare the large frames with another --size."
        )


def downsample(large: LargeVideo, factor: int) -> SmallVideo:
    """Return frames downsampled by an integer factor and rounded to 8 bits, as in preparation.

    Raises:
        UserError: If the side is not a multiple of the factor.
    """
    if large.shape[-1] % factor:
        raise UserError(
            f"Frames of {large.shape[-1]} pixels cannot be downsampled by {factor}; prepare them "
            f"with a --size that is a multiple of {factor}."
        )
    return from_uint8(to_uint8(degrade.downsample(large, factor)))


def nearest_upsample(
    small: Shaped[Tensor, "*lead h w"], factor: int
) -> Shaped[Tensor, "*lead tall wide"]:
    """Return pixels or a mask, each value repeated to a square of `factor` x `factor`."""
    return small.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def check_upscaler(pipeline: MagicVideoPipeline) -> int:
    """Return the scale factor of a model's upscaler.

    Raises:
        UserError: If the model has no upscaler.
    """
    if pipeline.upscaler is None:
        raise UserError("This model has no upscaler; name another with --model.")
    return int(pipeline.upscaler.config.factor)


def upscale(
    pipeline: MagicVideoPipeline, small: SmallVideo, num_steps: int, seed: int, tile: int
) -> LargeVideo:
    """Upscale frames with a model's upscaler; the result is on the CPU and not rounded.

    Args:
        pipeline: A model with an upscaler.
        small: The frames.
        num_steps: Diffusion steps.
        seed: Seed of the noise.
        tile: Longest side of a tile, in pixels of the small frames.
    """
    assert pipeline.upscaler is not None
    assert pipeline.upscaler_scheduler is not None
    made = upscale_frames(
        pipeline.upscaler,
        pipeline.scheduler_for("upscaler"),
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
    return from_uint8(to_uint8(made))


def _decoded_first(
    pipeline: MagicVideoPipeline, method: UpscaleMethod, noise: float, small: SmallVideo, seed: int
) -> LargeVideo:
    latents = encode_frames(pipeline.vae, small[None].to(pipeline.device))
    drawn = torch.randn(latents.shape, generator=seeded_generator("small frames", seed)).to(latents)
    decoded = decode_latents(pipeline.vae, latents + noise * drawn)[0].cpu()
    return method.enlarge(from_uint8(to_uint8(decoded)), seed)


def _by_kernel(factor: int, kernel: Image.Resampling, small: SmallVideo, _seed: int) -> LargeVideo:
    size = (factor * small.shape[-1], factor * small.shape[-2])
    pictures = (Image.fromarray(frame) for frame in to_uint8(small).numpy())
    resized = np.stack([np.asarray(picture.resize(size, kernel)) for picture in pictures])
    return from_uint8(torch.from_numpy(resized))


_HIGHEST = 10 * math.log10(12 * 255**2)  # PSNR after rounding to 8 bits, whose MSE is 1/12 level^2


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The scores of one method.

    Attributes:
        name: Name of the method.
        psnr: In dB, mean over clips. The value of a clip is limited to 58.9, the PSNR after
            rounding to 8 bits.
        ssim: Structural similarity, mean over clips.
        frechet: Frechet distance between the features of crops of its frames and of the real
            frames; 0 if the frames are equal.
        seconds: CPU seconds per frame.
        samples: The values of each clip, for paired comparisons.
    """

    name: str
    psnr: Estimate
    ssim: Estimate
    frechet: float
    seconds: float
    samples: MethodSamples


@torch.no_grad()
def score_quality(
    methods: Sequence[UpscaleMethod],
    image_encoder: CLIPVisionModelWithProjection,
    videos: Iterable[Float[Tensor, "_ 3 _ _"]],
    factor: int,
    on_clip: Callable[[int], None],
) -> list[Quality]:
    """Downsample real large frames, upscale them with every method, and compare.

    Args:
        methods: The methods to compare.
        image_encoder: CLIP's image encoder, which computes the features of crops.
        videos: Real large frames; one item is the frames of one clip.
        factor: The factor by which they are downsampled first.
        on_clip: Called with the number of finished clips.

    Raises:
        UserError: If the frames cannot be downsampled or are smaller than a crop.
    """
    real_features: list[Rows] = []
    samples = {method.name: MethodSamples(real_features) for method in methods}
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    for place, real in enumerate(videos):
        small = downsample(real, factor)
        real_features.append(crop_features(image_encoder, real))
        for method in methods:
            started = time.process_time()
            made = method.enlarge(small, place)
            seconds[method.name].append((time.process_time() - started) / len(real))
            features = crop_features(image_encoder, made)
            samples[method.name].add(*_nearness(made, real), features)
        on_clip(place + 1)
    return [_summary(name, found, seconds[name]) for name, found in samples.items()]


@torch.no_grad()
def crop_features(image_encoder: CLIPVisionModelWithProjection, video: LargeVideo) -> Features:
    """Return the normalised CLIP embeddings of crops of the encoder's input size.

    Whole frames would be downsampled for the encoder, which would remove the detail that an
    upscaler adds. So frames are cropped at full resolution, side by side from the top left corner.

    Raises:
        UserError: If a frame is smaller than a crop.
    """
    side = image_encoder.config.image_size
    if min(video.shape[-2:]) < side:
        raise UserError(
            f"Frames of {min(video.shape[-2:])} pixels are smaller than the {side} that the "
            "model's image encoder takes; prepare larger frames."
        )
    squares = video.unfold(2, side, side).unfold(3, side, side)
    crops = rearrange(squares, "f c rows columns h w -> (f rows columns) c h w")
    device = next(image_encoder.parameters()).device
    embeddings = embed_frames(image_encoder, crops[None].to(device))[0]
    return embeddings.double().cpu().numpy()


def _nearness(made: LargeVideo, real: LargeVideo) -> tuple[float, float]:
    return min(psnr(made[None], real[None]).item(), _HIGHEST), ssim(made, real)


def _summary(name: str, samples: MethodSamples, seconds: list[float]) -> Quality:
    return Quality(
        name=name,
        psnr=mean(np.array(samples.psnr)),
        ssim=mean(np.array(samples.ssim)),
        frechet=samples.frechet,
        seconds=float(np.mean(seconds)),
        samples=samples,
    )


REAL = "real clips"


@dataclass(frozen=True, kw_only=True)
class FlickerScore:
    """The flicker of one method, or of the real clips.

    Attributes:
        name: The method, or `REAL`.
        flicker: Mean absolute change from frame to frame where the small clip is static, in levels
            of 255, mean over clips.
        in_corners: The change in the corners of the frames, relative to the real clips'; None if
            theirs is zero.
    """

    name: str
    flicker: Estimate
    in_corners: Estimate | None


@torch.no_grad()
def score_static_flicker(
    methods: Sequence[UpscaleMethod],
    videos: Iterable[SmallVideo],
    factor: int,
    *,
    is_large: bool,
    on_clip: Callable[[int], None],
) -> list[FlickerScore]:
    """Upscale clips with every method and measure the change where the small clips are static.

    Args:
        methods: The methods to compare.
        videos: Consecutive real frames. Clips without static pixels are skipped.
        factor: The scale factor.
        is_large: Whether the videos are large and must be downsampled first.
        on_clip: Called with the number of finished clips.

    Returns:
        One entry per method, and that of the real clips at the end; empty if all clips were
        skipped.
    """
    names = [*(method.name for method in methods), REAL]
    figures = []
    for place, real in enumerate(videos):
        small = downsample(real, factor) if is_large else real
        still = static_mask(small)
        if still.any():
            large = nearest_upsample(still, factor)
            made = [_flickers(method.enlarge(small, place), large) for method in methods]
            figures.append([*made, _flickers(real, large if is_large else still)])
        on_clip(place + 1)
    if not figures:
        return []
    by_method = np.array(figures).transpose(1, 2, 0)
    real_corners = by_method[-1, 1]
    return [
        FlickerScore(
            name=name,
            flicker=mean(LEVELS * still),
            in_corners=ratio_of_means(cornered, real_corners) if real_corners.any() else None,
        )
        for name, (still, cornered) in zip(names, by_method, strict=True)
    ]


def _flickers(video: Float[Tensor, "f rgb h w"], still: Bool[Tensor, "h w"]) -> tuple[float, float]:
    """Return the flicker of static pixels, and that of the corners."""
    regions = (still, corner_mask(*video.shape[-2:]))
    where_still, in_corners = (flicker(video[None], region).item() for region in regions)
    return where_still, in_corners


BEFORE, FINISHED = "generated, before super-resolution", "generated, all stages"


@dataclass(frozen=True, kw_only=True)
class TemporalStats:
    """How much videos change from frame to frame.

    Attributes:
        name: `BEFORE`, `FINISHED` or `REAL`.
        flicker: Mean absolute change of the corners, in levels of 255.
        change: Mean absolute change of whole frames, in levels of 255.
        times_flicker: `flicker` relative to the real clips'; None if theirs is zero.
        times_change: `change` relative to the real clips'; None if theirs is zero.
    """

    name: str
    flicker: Estimate
    change: Estimate
    times_flicker: Estimate | None
    times_change: Estimate | None


@torch.no_grad()
def score_generated_flicker(
    pipeline: MagicVideoPipeline,
    dataset: ClipDataset,
    prompts: Sequence[Prompt],
    on_video: Callable[[int], None],
) -> list[TemporalStats]:
    """Generate videos with all stages and the model's default settings, and measure their frames.

    Frames are rounded to 8 bits and not encoded.

    Args:
        pipeline: A model with an upscaler.
        dataset: The clips whose captions are the prompts.
        prompts: One for each video.
        on_video: Called with the number of finished videos.

    Returns:
        The values of the videos before and after super-resolution, and of the same number of
        consecutive frames of the real clips; empty if there is no prompt.
    """
    if not prompts:
        return []
    requests = [
        pipeline.build_requests([prompt.caption], [prompt.seed], GenerationSettings())[0]
        for prompt in prompts
    ]
    figures = []
    reals = real_videos(dataset, list(prompts), requests[0].video_frames, 1)
    for done, (request, real) in enumerate(zip(requests, reals, strict=True), start=1):
        frames = pipeline.decode(pipeline.generate_latents(request))
        large = pipeline.upscale(request, frames)
        made = (from_uint8(to_uint8(video[0].cpu())) for video in (frames, large))
        figures.append([_figures(video) for video in (*made, real)])
        on_video(done)
    by_row = np.array(figures).transpose(1, 2, 0)
    return [
        _temporal_summary(name, found, by_row[-1])
        for name, found in zip((BEFORE, FINISHED, REAL), by_row, strict=True)
    ]


def _figures(video: Float[Tensor, "f 3 h w"]) -> tuple[float, float]:
    """Return the change of the corners and that of whole frames."""
    whole = video[None]
    return flicker(whole, corner_mask(*video.shape[-2:])).item(), temporal_change(whole).item()


def _temporal_summary(
    name: str, figures: Float[np.ndarray, "two n"], real: Float[np.ndarray, "two n"]
) -> TemporalStats:
    flickers, changes = figures
    real_flickers, real_changes = real
    return TemporalStats(
        name=name,
        flicker=mean(LEVELS * flickers),
        change=mean(LEVELS * changes),
        times_flicker=ratio_of_means(flickers, real_flickers) if real_flickers.any() else None,
        times_change=ratio_of_means(changes, real_changes) if real_changes.any() else None,
    )


_TILES_A_SIDE = 3  # the middle tile then has neighbours on all sides


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The difference between tiled and untiled output.

    Attributes:
        side: Side of the small frame in pixels.
        tile: Side of a tile with its overlap, in pixels of the small frame.
        greatest: The largest difference of any pixel, in levels of 255.
        border: Mean absolute difference of neighbouring pixels across tile borders, in levels of
            255.
        untiled_border: The same difference at the same places of the untiled output.
    """

    side: int
    tile: int
    greatest: float
    border: float
    untiled_border: float


@torch.no_grad()
def score_tiles(
    pipeline: MagicVideoPipeline, small: SmallVideo, num_steps: int, seed: int
) -> Tiling | None:
    """Upscale square frames untiled and in three by three tiles, and compare the results.

    Args:
        pipeline: A model with an upscaler.
        small: The frames.
        num_steps: Diffusion steps.
        seed: Seed of the noise.

    Returns:
        The comparison, or None if the receptive field is so large that a tile would not be smaller
        than the frame.

    Raises:
        UserError: If the model has no upscaler.
    """
    check_upscaler(pipeline)
    assert pipeline.upscaler is not None
    factor, multiple = pipeline.upscaler.config.factor, pipeline.upscaler.size_divisor
    side = _next_multiple(small.shape[-1], multiple)
    core = _next_multiple(-(-side // _TILES_A_SIDE), multiple)
    tile = core + 2 * _next_multiple(pipeline.upscaler.receptive_radius, multiple)
    if tile >= side:
        return None
    whole, tiled = (upscale(pipeline, small, num_steps, seed, size) for size in (side, tile))
    borders = torch.arange(factor * core, whole.shape[-1], factor * core)
    return Tiling(
        side=small.shape[-1],
        tile=tile,
        greatest=LEVELS * (tiled - whole).abs().max().item(),
        border=_step_across(tiled, borders),
        untiled_border=_step_across(whole, borders),
    )


def _step_across(frames: LargeVideo, borders: Tensor) -> float:
    columns = (frames[..., borders] - frames[..., borders - 1]).abs().mean()
    rows = (frames[..., borders, :] - frames[..., borders - 1, :]).abs().mean()
    return LEVELS * (columns + rows).item() / 2


def _next_multiple(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class UpscalerScores:
    """All scores.

    Attributes:
        default: Name of the method that the model uses by default.
        quality: Quality of the network at every number of steps, and of resizing.
        decoded: For each noise on the latents, the quality of the network with its default steps
            and of resizing, on small frames that passed through the autoencoder; may be empty.
        static_flicker: Of the network with its default steps, resizing and the real clips; may be
            empty.
        generated_flicker: Of generated videos and of the real clips; may be empty.
        tiling: The effect of tiles; None if the frames are too small for tiles.
        large_side: Side of the real frames in pixels.
        small_side: Side of the small frames of `quality` in pixels.
        moving_side: Side of the small frames of `static_flicker` in pixels.
    """

    default: str
    quality: list[Quality]
    decoded: Mapping[float, list[Quality]]
    static_flicker: list[FlickerScore]
    generated_flicker: list[TemporalStats]
    tiling: Tiling | None
    large_side: int
    small_side: int
    moving_side: int


@dataclass(frozen=True, kw_only=True)
class UpscalerEvaluation:
    """The model, the clips and the settings of the evaluation.

    Attributes:
        pipeline: A model with an upscaler.
        data: Folder of large clips; the held-out clips are used.
        clips: Number of clips, each used once and on a plain background.
        frames: Consecutive frames per clip.
        steps: Numbers of diffusion steps to compare; the model's default is added.
        moving: Folder of small clips with all their frames, for flicker; None downsamples `data`.
        moving_clips: Number of clips of `moving`.
        moving_frames: Consecutive frames per clip of `moving`.
        seed: Seed of the choice of clips and frames; the noise of clip k has the seed k.
        latent_noises: Standard deviations of the noise on the latents for `decoded`; empty skips
            it.
        generated: Number of videos to generate from captions of `moving` for `generated_flicker`; 0
            skips it.
    """

    pipeline: MagicVideoPipeline
    data: Path
    clips: int
    frames: int
    steps: tuple[int, ...]
    moving: Path | None
    moving_clips: int
    moving_frames: int
    seed: int
    latent_noises: tuple[float, ...] = ()
    generated: int = 0

    def run(self, progress: Callable[[str, int, int], None]) -> UpscalerScores:
        """Score everything.

        Raises:
            UserError: If the model has no upscaler, or the data do not fit it or are too few.
        """
        pipeline, factor = self.pipeline, check_upscaler(self.pipeline)
        dataset = ClipDataset(self.data, ("heldout",))
        moving = ClipDataset(self.moving, ("heldout",)) if self.moving else dataset
        default = pipeline.capabilities.default("upscaler_steps")
        curve = [network_method(pipeline, steps) for steps in sorted({*self.steps, default})]
        chosen, resized = network_method(pipeline, default), resize_methods(pipeline)
        moving_prompts = sample_prompts(moving, self.moving_clips, self.seed)
        asked = sample_prompts(moving, self.generated, self.seed)
        prompts = sample_prompts(dataset, self.clips, self.seed)
        if self.latent_noises:
            check_vae_divisible(pipeline, dataset.info.size // factor)

        def score(methods: Sequence[UpscaleMethod], what: str) -> list[Quality]:
            return score_quality(
                methods,
                pipeline.image_encoder,
                real_videos(dataset, prompts, self.frames, 1),
                factor,
                lambda done: progress(what, done, self.clips),
            )

        quality = score([*curve, *resized], "quality")
        decoded = {
            noise: score(
                [with_vae_roundtrip(pipeline, method, noise) for method in (chosen, *resized)],
                f"quality of decoded frames, noise {noise:g}",
            )
            for noise in self.latent_noises
        }
        static_flicker = score_static_flicker(
            [chosen, *resized],
            real_videos(moving, moving_prompts, self.moving_frames, 1),
            factor,
            is_large=self.moving is None,
            on_clip=lambda done: progress("flicker", done, self.moving_clips),
        )
        generated_flicker = score_generated_flicker(
            pipeline, moving, asked, lambda done: progress("generated", done, self.generated)
        )
        # a large frame serves as the small one, because small frames fit in one tile
        large = next(real_videos(dataset, prompts[:1], 1, 1))
        side = moving.info.size
        return UpscalerScores(
            default=chosen.name,
            quality=quality,
            decoded=decoded,
            static_flicker=static_flicker,
            generated_flicker=generated_flicker,
            tiling=score_tiles(pipeline, large, default, self.seed),
            large_side=dataset.info.size,
            small_side=dataset.info.size // factor,
            moving_side=side if self.moving else side // factor,
        )


_SHOWN = 5  # clips, one column each


@torch.no_grad()
def write_comparison_sheet(evaluation: UpscalerEvaluation, path: Path) -> None:
    """Write a PNG that compares all methods on a frame of a few clips with the real frame.

    Args:
        evaluation: Has the model and the clips, of which the first are shown.
        path: The file, which is replaced.

    Raises:
        UserError: If the model has no upscaler, or the data do not fit it or are too few.
    """
    pipeline, factor = evaluation.pipeline, check_upscaler(evaluation.pipeline)
    dataset = ClipDataset(evaluation.data, ("heldout",))
    prompts = sample_prompts(dataset, evaluation.clips, evaluation.seed)[:_SHOWN]
    reals = list(real_videos(dataset, prompts, 1, 1))
    methods = [
        UpscaleMethod("small, pixels repeated", lambda small, _: nearest_upsample(small, factor)),
        *resize_methods(pipeline),
        network_method(pipeline, pipeline.capabilities.default("upscaler_steps")),
    ]
    rows = [
        (method.name, [method.enlarge(downsample(real, factor), k) for k, real in enumerate(reals)])
        for method in methods
    ]
    strips = [(name, torch.cat(frames)) for name, frames in (*rows, ("real", reals))]
    write_sheet(strips, len(reals), path, cell=dataset.info.size)

"""Interpolation and super-resolution of any video, as a stream of frames."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, count, islice

import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.errors import UserError
from magicvideo.media.video_io import Frame, VideoStream
from magicvideo.models.autoencoder import encode_frames, iter_decode, vae_scale_factor
from magicvideo.models.conditioning import encode_text
from magicvideo.pipelines.keyframes import interpolate_latents
from magicvideo.pipelines.request import DEFAULT_CHUNKS
from magicvideo.pipelines.text_to_video import MagicVideoPipeline, ProgressCallback
from magicvideo.pipelines.upscale import pad_to_multiple, upscale_batches
from magicvideo.shapes import Latents, Tokens

_GAPS_AT_ONCE = 15  # the paper's number of gaps per video


def interpolate_video(
    pipeline: MagicVideoPipeline,
    video: VideoStream,
    *,
    prompt: str = "",
    seed: int = 0,
    num_steps: int | None = None,
    progress: ProgressCallback | None = None,
) -> VideoStream:
    """Insert new frames between all frames of a video.

    All frames, including the given ones, pass through the autoencoder, for a consistent look.

    Args:
        pipeline: A model with an interpolator.
        video: A video of at least two frames, of any size.
        prompt: Description of the video; may be empty.
        seed: Seed of the noise.
        num_steps: Diffusion steps; by default the model's.
        progress: Called with the stage, the number of finished steps or frames and the total.

    Raises:
        UserError: If the model has no interpolator.
    """
    if pipeline.interpolator is None:
        raise UserError("This model has no stage interpolation; choose another with --model.")
    inserted = pipeline.interpolator.config.num_inserted
    steps = num_steps or pipeline.capabilities.default("interpolation_steps")
    made = replace(
        video,
        num_frames=video.num_frames + (video.num_frames - 1) * inserted,
        fps=video.fps * (inserted + 1),
    )
    frames = _interpolate(pipeline, video, made, prompt, seed, steps, progress or _ignore_progress)
    return replace(made, frames=frames)


def upscale_video(
    pipeline: MagicVideoPipeline,
    video: VideoStream,
    *,
    seed: int = 0,
    num_steps: int | None = None,
    progress: ProgressCallback | None = None,
) -> VideoStream:
    """Upscale a video, tile by tile.

    Args:
        pipeline: A model with an upscaler.
        video: A video of any size.
        seed: Seed of the noise, which is the same for all frames.
        num_steps: Diffusion steps; by default the model's.
        progress: Called with the stage, the number of finished steps and the total.

    Raises:
        UserError: If the model has no upscaler.
    """
    if pipeline.upscaler is None or pipeline.upscaler_scheduler is None:
        raise UserError("This model has no stage upscaler; choose another with --model.")
    factor = pipeline.upscaler.config.factor
    steps = num_steps or pipeline.capabilities.default("upscaler_steps")
    frames = _upscale(pipeline, video, seed, steps, progress or _ignore_progress)
    return replace(video, frames=frames, height=factor * video.height, width=factor * video.width)


@torch.no_grad()
def _interpolate(
    pipeline: MagicVideoPipeline,
    video: VideoStream,
    made: VideoStream,
    prompt: str,
    seed: int,
    num_steps: int,
    progress: ProgressCallback,
) -> Iterator[Frame]:
    progress("encoding", 0, video.num_frames)
    at_once = video.frames_per_batch(_GAPS_AT_ONCE)
    num_batches = -(-(video.num_frames - 1) // at_once)
    on_step = _count_steps(progress, "interpolation", num_batches * num_steps)
    progress("decoding", 0, made.num_frames)
    with pipeline.load_components("text_encoder"):
        tokens = encode_text(
            pipeline.text_encoder, pipeline.tokenizer, [prompt], pipeline._execution_device
        )
    # both stages at once: the latents of a long video would not fit in memory
    with pipeline.load_components("vae", "interpolator"):
        keys = _batch_keyframes(_encode(pipeline, video, progress), at_once)
        latents = _interpolate_batches(pipeline, keys, tokens, made.fps, seed, num_steps, on_step)
        window, done = video.frames_per_batch(DEFAULT_CHUNKS.decoder_frames), 0
        windows = chain.from_iterable(torch.split(part, window) for part in latents)
        for frames in iter_decode(pipeline.vae, windows):
            done += len(frames)
            progress("decoding", done, made.num_frames)
            yield from frames[..., : made.height, : made.width].cpu()


def _encode(
    pipeline: MagicVideoPipeline, video: VideoStream, progress: ProgressCallback
) -> Iterator[Float[Tensor, "c h w"]]:
    """Encode the frames of a video."""
    levels = len(pipeline.unet.config.block_out_channels)
    multiple = int(vae_scale_factor(pipeline.vae) * 2 ** (levels - 1))
    done = 0
    for part in video.batches(_GAPS_AT_ONCE):
        padded = pad_to_multiple(part, multiple)[None].to(pipeline._execution_device)
        latents = encode_frames(pipeline.vae, padded)[0]
        done += len(part)
        progress("encoding", done, video.num_frames)
        yield from latents


def _batch_keyframes(keys: Iterator[Float[Tensor, "c h w"]], at_once: int) -> Iterator[Latents]:
    """Yield the key frames of `at_once` gaps at a time; batches share one key frame."""
    last: list[Tensor] = []
    while part := list(islice(keys, at_once + 1 - len(last))):
        yield torch.stack([*last, *part])[None]
        last = part[-1:]


def _interpolate_batches(
    pipeline: MagicVideoPipeline,
    batches: Iterable[Latents],
    tokens: Tokens,
    fps: float,
    seed: int,
    num_steps: int,
    on_step: Callable[[int], None],
) -> Iterator[Float[Tensor, "f c h w"]]:
    """Yield key frames and new frames in order, each once."""
    assert pipeline.interpolator is not None
    for number, keys in enumerate(batches):
        latents = interpolate_latents(
            pipeline.interpolator,
            pipeline.scheduler_for("interpolation"),
            keys,
            tokens,
            fps=fps,
            seed=seed,
            num_steps=num_steps,
            noise_correlation=pipeline.config.noise_correlation,
            noise_level=0,  # frames of real videos are clean
            on_step=on_step,
        )
        yield latents[0, min(number, 1) :]


@torch.no_grad()
def _upscale(
    pipeline: MagicVideoPipeline,
    video: VideoStream,
    seed: int,
    num_steps: int,
    progress: ProgressCallback,
) -> Iterator[Frame]:
    num_parts = -(-video.num_frames // video.frames_per_batch(DEFAULT_CHUNKS.upscaler_frames))
    on_step = _count_steps(progress, "super-resolution", num_parts * num_steps)
    with pipeline.load_components("upscaler"):
        assert pipeline.upscaler is not None
        assert pipeline.upscaler_scheduler is not None
        for large in upscale_batches(
            pipeline.upscaler,
            pipeline.scheduler_for("upscaler"),
            video.batches(DEFAULT_CHUNKS.upscaler_frames),
            seed,
            num_steps=num_steps,
            noise_level=0.0,  # frames of real videos are clean
            on_step=on_step,
        ):
            yield from large.cpu()


def _count_steps(progress: ProgressCallback, stage: str, total: int) -> Callable[[int], None]:
    """Return a callback that counts the steps of a stage over all its batches."""
    finished = count(1)
    progress(stage, 0, total)
    return lambda _: progress(stage, next(finished), total)


def _ignore_progress(stage: str, done: int, total: int) -> None:
    """Ignore progress."""

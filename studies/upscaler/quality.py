"""Enlarged frames against the real large ones: nearness, likeness of detail, and the price."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate, mean
from magicvideo.evaluation.metrics.frechet import Features
from magicvideo.evaluation.metrics.psnr import psnr
from magicvideo.evaluation.metrics.ssim import ssim
from magicvideo.evaluation.paired_comparison import MethodSamples, Rows
from magicvideo.models.conditioning import embed_frames
from studies.upscaler.methods import LargeVideo, UpscaleMethod, downsample

_HIGHEST = 10 * math.log10(12 * 255**2)  # dB that rounding to 8 bits leaves; empty frames have more


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What one way to enlarge earns.

    Attributes:
        name: The way.
        psnr: In dB, mean over clips; of a clip at most what rounding to 8 bits leaves, 58.9.
        ssim: Structural similarity, mean over clips.
        frechet: Between the features of crops of its frames and of the real frames, so that
            frames equal to the real ones have 0.
        seconds: CPU seconds a frame.
        samples: All of this clip by clip, by which ways are compared.
    """

    name: str
    psnr: Estimate
    ssim: Estimate
    frechet: float
    seconds: float
    samples: MethodSamples


@torch.no_grad()
def score_quality(
    ways: Sequence[UpscaleMethod],
    image_encoder: CLIPVisionModelWithProjection,
    videos: Iterable[Float[Tensor, "_ 3 _ _"]],
    factor: int,
    on_clip: Callable[[int], None],
) -> list[Quality]:
    """Shrink real large frames, enlarge them in every way, and compare.

    Args:
        ways: What is compared.
        image_encoder: CLIP's image tower: the fixed map from crops to features.
        videos: Real large frames, some a clip.
        factor: How many times smaller they are made first.
        on_clip: Called with the number of clips that are done.

    Raises:
        UserError: If the frames cannot be shrunk or are smaller than a crop.
    """
    real_features: list[Rows] = []
    samples = {way.name: MethodSamples(real_features) for way in ways}
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for place, real in enumerate(videos):
        small = downsample(real, factor)
        real_features.append(crop_features(image_encoder, real))
        for way in ways:
            started = time.process_time()
            made = way.enlarge(small, place)
            seconds[way.name].append((time.process_time() - started) / len(real))
            features = crop_features(image_encoder, made)
            samples[way.name].add(*_nearness(made, real), features)
        on_clip(place + 1)
    return [_summary(name, found, seconds[name]) for name, found in samples.items()]


@torch.no_grad()
def crop_features(image_encoder: CLIPVisionModelWithProjection, video: LargeVideo) -> Features:
    """Return the CLIP embeddings, at unit length, of all whole crops of the encoder's own side.

    Whole frames would be made smaller for the encoder, and what an upscaler adds would be gone.
    Crops lie side by side from the top left corner, and are seen at full resolution.

    Raises:
        UserError: If a frame is smaller than a crop.
    """
    side = image_encoder.config.image_size
    if min(video.shape[-2:]) < side:
        raise UserError(
            f"Frames of {min(video.shape[-2:])} pixels are smaller than the {side} that the "
            "model's image encoder looks at; prepare larger frames."
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

"""Compare two decoders on the same latents of held-out clips: flicker and reconstruction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from magicvideo.data.dataset import ClipDataset
from magicvideo.diffusion.noise import seeded_generator
from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate, mean, ratio_of_means
from magicvideo.evaluation.metrics.image_quality import psnr
from magicvideo.evaluation.metrics.motion import LEVELS, flicker, static_mask, temporal_change
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from magicvideo.evaluation.results_page import format_estimate, markdown_table
from magicvideo.models.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_frames,
)
from magicvideo.shapes import Frames, Latents

WEIGHTS = "diffusion_pytorch_model.safetensors"
MEASURES = ("flicker", "temporal error", "psnr")
_SAME_LATENTS = 0.02  # largest difference that half-precision weights can cause; latents have std 1


@dataclass(frozen=True, kw_only=True)
class DecoderComparison:
    """One measure of both decoders.

    Attributes:
        name: `flicker`: mean absolute change between frames of pixels that never change in the
            real clip. `temporal error`: mean absolute difference between the changes from frame to
            frame and those of the real clip. Both for pixels in [-1, 1]. `psnr`: in dB.
        first: Mean over clips of the first decoder.
        second: Mean over clips of the second decoder.
        gain: The second divided by the first, or for `psnr` the second minus the first in dB, with
            an interval over the clips, which both share.
    """

    name: str
    first: float
    second: float
    gain: Estimate


@torch.no_grad()
def compare_decoders(
    first: Autoencoder,
    second: Autoencoder,
    dataset: ClipDataset,
    count: int,
    *,
    num_frames: int,
    stride: int,
    noise: float,
    seed: int,
    on_clip: Callable[[int], None],
) -> list[DecoderComparison]:
    """Decode the same latents with both decoders, and measure the pixels.

    Args:
        first: The autoencoder that encodes.
        second: One with the same encoder.
        dataset: Clips on which neither was trained, shown on plain backgrounds.
        count: Number of clips; each is used once.
        num_frames: Frames per clip.
        stride: Distance between frames.
        noise: Standard deviation of the noise that is added to the latents of every frame, relative
            to that of the latents: generated latents contain errors.
        seed: Seed of the choice of clips and backgrounds, and of the noise.
        on_clip: Called with the number of finished clips.

    Raises:
        UserError: If the encoders differ, there are too few clips, or no clip has static pixels.
    """
    prompts = sample_prompts(dataset, count, seed)
    rows = []
    for place, video in enumerate(real_videos(dataset, prompts, num_frames, stride)):
        frames = video[None]
        latents = encode_frames(first, frames)
        if place == 0:
            _check_same(latents, encode_frames(second, frames))
        drawn = torch.randn(latents.shape, generator=seeded_generator(seed, "decoders", place))
        decoded = (decode_latents(part, latents + noise * drawn) for part in (first, second))
        rows.append([_measures(made, frames) for made in decoded])
        on_clip(place + 1)
    figures = np.array(rows)  # clips, decoders, measures
    return [_compare(name, figures[:, :, place]) for place, name in enumerate(MEASURES)]


def decoders_table(found: Mapping[float, list[DecoderComparison]]) -> str:
    """Return the comparisons for each noise as a Markdown table; changes are in levels of 255."""
    rows = []
    for noise, comparisons in found.items():
        for row in comparisons:
            in_decibel = row.name == "psnr"
            scale, label = (1, "PSNR, dB") if in_decibel else (LEVELS, f"{row.name}, levels")
            numbers = (f"{scale * value:.3f}" for value in (row.first, row.second))
            kind = "difference" if in_decibel else "ratio"
            gain = f"{kind} {format_estimate(row.gain, 3)}"
            rows.append((f"{noise:g}", label, *numbers, gain, str(row.gain.count)))
    return markdown_table(
        (
            "noise",
            "measure",
            "frame decoder",
            "video decoder",
            "video to frame decoder [95 %]",
            "n",
        ),
        rows,
    )


def _check_same(latents: Latents, others: Latents) -> None:
    same = latents.shape == others.shape
    if not same or (latents - others).abs().max() > _SAME_LATENTS:
        raise UserError(
            "These autoencoders encode the same clip differently, so their decoders cannot be "
            "compared on the same latents; use a video autoencoder and the one it started from."
        )


def _measures(made: Frames, real: Frames) -> list[float]:
    still = static_mask(real[0])
    return [
        flicker(made, still).item() if still.any() else float("nan"),
        temporal_change(made - real).item(),
        psnr(made, real).item(),
    ]


def _compare(name: str, figures: Float[np.ndarray, "clips two"]) -> DecoderComparison:
    known = figures[np.isfinite(figures).all(axis=1)]
    if not len(known):
        raise UserError(f"None of these clips has a value of {name}: no clip has static pixels.")
    first, second = known.T
    return DecoderComparison(
        name=name,
        first=float(first.mean()),
        second=float(second.mean()),
        gain=mean(second - first) if name == "psnr" else ratio_of_means(second, first),
    )

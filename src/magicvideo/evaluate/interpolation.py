"""Frames between key frames: ours against blending and standing still, on held-out clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.data.dataset import ClipDataset
from magicvideo.diffusion.gaps import key_pairs, weave
from magicvideo.errors import UserError
from magicvideo.evaluate.clips import Prompt, draw_prompts, from_bytes, real_videos, to_bytes
from magicvideo.evaluate.intervals import Estimate, mean, ratio_of_means
from magicvideo.evaluate.judge.network import Judge
from magicvideo.evaluate.metrics.frechet import fit_gaussian, frechet_distance
from magicvideo.evaluate.metrics.psnr import psnr
from magicvideo.evaluate.metrics.ssim import ssim
from magicvideo.evaluate.page import number, table
from magicvideo.generate.pipeline import MagicVideoPipeline
from magicvideo.generate.request import Settings
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import encode_text
from magicvideo.models.interpolation import blend
from magicvideo.shapes import Frames, Latents

LATENT_BLEND, PIXEL_BLEND = "blend of latents", "blend of pixels"
NEAREST, CEILING = "nearest key frame", "decoded real frames"
REAL = "real clips"


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """What one way to fill the gaps earns, on the inserted frames alone.

    Attributes:
        name: The method, or `REAL`.
        psnr: In dB, mean over clips; None for the real clips themselves.
        gain: In dB, over the blend of latents on the same clip; None for the real clips.
        ssim: Structural similarity, mean over clips; None for the real clips themselves.
        frechet: Between the judge's features of the filled clips and of the real ones.
        seam: Mean change between frames at the keys, over that elsewhere.
    """

    name: str
    psnr: Estimate | None
    gain: Estimate | None
    ssim: Estimate | None
    frechet: float
    seam: Estimate


@torch.no_grad()
def score_interpolation(
    pipeline: MagicVideoPipeline,
    judge: Judge,
    dataset: ClipDataset,
    count: int,
    *,
    num_keys: int,
    steps: Sequence[int],
    seed: int,
    on_clip: Callable[[int], None],
) -> list[MethodScores]:
    """Fill the gaps between real key frames in every way, and compare with the real frames.

    Keys are real frames that passed the autoencoder, the same for all methods. The last rows are
    the ceiling of all that work on latents, which is the real frames through the autoencoder, and
    the real clips, whose seam is what the others' are to be compared with.

    Args:
        pipeline: A model with an interpolator.
        judge: Gives the features of the Frechet distance.
        dataset: Clips on which nothing was trained but the judge.
        count: How many clips; each once, on a plain background.
        num_keys: Key frames of each.
        steps: Numbers of diffusion steps to try; each is a method of its own.
        seed: Of the draw, and of the networks' noise.
        on_clip: Called with the number of clips that are done.

    Raises:
        UserError: If the model has no interpolator, or there are too few clips.
    """
    if pipeline.interpolator is None:
        raise UserError("This model has no interpolation network; name another with --model.")
    inserted = pipeline.interpolator.config.num_inserted
    num_frames = num_keys + (num_keys - 1) * inserted
    between = torch.tensor([place % (inserted + 1) != 0 for place in range(num_frames)])
    rows: dict[str, list[list[float]]] = {}
    features: dict[str, list[Tensor]] = {}
    prompts = draw_prompts(dataset, count, seed)
    videos = real_videos(dataset, prompts, num_frames, 1)
    for done, (prompt, video) in enumerate(zip(prompts, videos, strict=True), start=1):
        real = video[None]
        fps = dataset.clips[prompt.index].fps / (inserted + 1)
        filled = _fill(pipeline, real.to(pipeline.device), prompt, fps, steps)
        for name, made in {**filled, REAL: real}.items():
            seen = from_bytes(to_bytes(made[0].cpu()))[None]
            features.setdefault(name, []).append(judge.embed_videos(seen))
            rows.setdefault(name, []).append(_measures(seen, real, between))
        on_clip(done)
    gaussians = {
        name: fit_gaussian(torch.cat(found).double().numpy()) for name, found in features.items()
    }
    figures = {name: np.array(found) for name, found in rows.items()}
    blended = figures[LATENT_BLEND][:, 0]
    return [
        _summary(name, found, blended, frechet_distance(gaussians[name], gaussians[REAL]))
        for name, found in figures.items()
    ]


def ours(steps: int) -> str:
    """Return the name of our method with a number of diffusion steps."""
    return f"interpolation network, {steps} step{'s' if steps > 1 else ''}"


def _fill(
    pipeline: MagicVideoPipeline,
    real: Frames,
    prompt: Prompt,
    fps: float,
    steps: Sequence[int],
) -> dict[str, Float[Tensor, "1 f 3 h w"]]:
    """Return the clip as every method gives it."""
    assert pipeline.interpolator is not None
    inserted = pipeline.interpolator.config.num_inserted
    latents = encode_frames(pipeline.vae, real)
    keys = latents[:, :: inserted + 1]
    decoded = decode_latents(pipeline.vae, latents)
    decoded_keys = decoded[:, :: inserted + 1]
    nearest = torch.arange(real.shape[1]).add((inserted + 1) // 2) // (inserted + 1)
    found = {
        ours(count): decode_latents(pipeline.vae, _ours(pipeline, keys, prompt, fps, count))
        for count in steps
    }
    return found | {
        LATENT_BLEND: decode_latents(pipeline.vae, _blend(keys, inserted)),
        PIXEL_BLEND: _blend(decoded_keys, inserted),
        NEAREST: decoded_keys[:, nearest],
        CEILING: decoded,
    }


def _ours(
    pipeline: MagicVideoPipeline, keys: Latents, prompt: Prompt, fps: float, steps: int
) -> Float[Tensor, "b all c h w"]:
    settings = Settings(
        num_frames=keys.shape[1],
        fps=fps,
        stages=("keyframes", "interpolation"),
        interpolation_steps=steps,
    )
    request = pipeline.plan([prompt.caption], [prompt.seed], settings)[0]
    tokens = encode_text(pipeline.text_encoder, pipeline.tokenizer, [prompt.caption])
    return pipeline.interpolate(request, keys, tokens)


def _blend(keys: Latents, inserted: int) -> Float[Tensor, "b all c h w"]:
    return weave(keys, blend(key_pairs(keys), inserted))


def _measures(made: Frames, real: Frames, between: Tensor) -> list[float]:
    ours, theirs = made[:, between], real[:, between]
    change = made.diff(dim=1).abs().mean(dim=(0, 2, 3, 4))
    at_key = ~between[1:] | ~between[:-1]
    return [
        psnr(ours, theirs).item(),
        ssim(ours[0], theirs[0]),
        change[at_key].mean().item(),
        change[~at_key].mean().item(),
    ]


def _summary(
    name: str,
    figures: Float[np.ndarray, "n 4"],
    blended: Float[np.ndarray, " n"],
    distance: float,
) -> MethodScores:
    signal, similarity, at_keys, elsewhere = figures.T
    return MethodScores(
        name=name,
        psnr=None if name == REAL else mean(signal),
        gain=None if name in (REAL, LATENT_BLEND) else mean(signal - blended),
        ssim=None if name == REAL else mean(similarity),
        frechet=distance,
        seam=ratio_of_means(at_keys, elsewhere),
    )


def interpolation_table(scores: list[MethodScores]) -> str:
    """Return the scores as a Markdown table."""
    columns = (
        "between the keys",
        "n",
        "PSNR, dB [95 %]",
        "over the blend of latents, dB [95 %]",
        "SSIM [95 %]",
        "Frechet distance",
    )
    rows = [
        (
            row.name,
            str(row.seam.count),
            number(row.psnr, 2) if row.psnr else "",
            number(row.gain, 2) if row.gain else "",
            number(row.ssim, 4) if row.ssim else "",
            f"{row.frechet:.5f}",
            number(row.seam, 2),
        )
        for row in scores
    ]
    return table((*columns, "change at keys / elsewhere [95 %]"), rows)

"""What every way to fill the gaps earns: on its frames, on its gaps and on its clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluate.clips import draw_prompts, from_bytes, real_videos, to_bytes
from magicvideo.evaluate.interpolation.filling import LATENT_BLEND, fill_every_way
from magicvideo.evaluate.intervals import Estimate, centred_bootstrap, mean, ratio_of_means
from magicvideo.evaluate.judge.network import Judge
from magicvideo.evaluate.metrics.frechet import fit_gaussian, frechet_distance
from magicvideo.evaluate.metrics.psnr import psnr
from magicvideo.evaluate.metrics.ssim import ssim
from magicvideo.generate.pipeline import MagicVideoPipeline
from magicvideo.shapes import Frames

REAL = "real clips"
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """What one way to fill the gaps earns.

    Attributes:
        name: The method, or `REAL`.
        psnr: In dB, of the inserted frames, mean over clips; None for the real clips themselves.
        gain: In dB, over the blend of latents on the same clip; None for the real clips.
        ssim: Structural similarity of the inserted frames; None for the real clips themselves.
        of_gaps: Frechet distance to the real clips, whose samples are gaps: the judge's features of
            all their frames in order, keys included.
        of_gaps_ratio: That distance over the blend's of latents, on the same clips; None for both.
        of_clips: Frechet distance whose samples are whole clips. Of their frames it sees few, and
            hardly the order.
        seam: Mean change between frames at the keys, over that elsewhere.
    """

    name: str
    psnr: Estimate | None
    gain: Estimate | None
    ssim: Estimate | None
    of_gaps: float
    of_gaps_ratio: Estimate | None
    of_clips: float
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
        judge: Gives the features of the Frechet distances.
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
    prompts = draw_prompts(dataset, count, seed)
    videos = real_videos(dataset, prompts, num_frames, 1)
    seen: dict[str, _Seen] = {}
    for done, (prompt, video) in enumerate(zip(prompts, videos, strict=True), start=1):
        real = video[None]
        fps = dataset.clips[prompt.index].fps / (inserted + 1)
        filled = fill_every_way(pipeline, real.to(pipeline.device), prompt, fps, steps)
        for name, made in {**filled, REAL: real}.items():
            read = from_bytes(to_bytes(made[0].cpu()))[None]
            seen.setdefault(name, _Seen()).add(read, real, inserted, judge)
        on_clip(done)
    return [_summary(name, found, seen[LATENT_BLEND], seen[REAL]) for name, found in seen.items()]


@dataclass
class _Seen:
    """What was measured of one method, clip after clip."""

    figures: list[list[float]] = field(default_factory=list)
    """PSNR, SSIM, the change at keys and the change elsewhere."""
    gaps: list[Float[np.ndarray, "gaps d"]] = field(default_factory=list)
    clips: list[Float[np.ndarray, "1 d"]] = field(default_factory=list)

    def add(self, made: Frames, real: Frames, inserted: int, judge: Judge) -> None:
        """Measure one more clip; the sizes are 1 x frames x 3 x h x w."""
        of_frames = judge.embed_videos(made[0, :, None])
        gaps = of_frames.unfold(0, inserted + 2, inserted + 1).flatten(start_dim=1)
        self.gaps.append(gaps.double().numpy())
        self.clips.append(judge.embed_videos(made).double().numpy())
        places = torch.arange(made.shape[1])
        self.figures.append(_figures(made, real, places % (inserted + 1) != 0))


def _figures(made: Frames, real: Frames, between: Tensor) -> list[float]:
    ours, theirs = made[:, between], real[:, between]
    change = made.diff(dim=1).abs().mean(dim=(0, 2, 3, 4))
    at_key = ~between[1:] | ~between[:-1]
    return [
        psnr(ours, theirs).item(),
        ssim(ours[0], theirs[0]),
        change[at_key].mean().item(),
        change[~at_key].mean().item(),
    ]


def _summary(name: str, found: _Seen, blended: _Seen, real: _Seen) -> MethodScores:
    signal, similarity, at_keys, elsewhere = np.array(found.figures).T
    blended_signal = np.array(blended.figures)[:, 0]

    def ratio(places: Int[np.ndarray, " n"], _: Int[np.ndarray, " one"]) -> float:
        above = _distance(found.gaps, real.gaps, places)
        below = _distance(blended.gaps, real.gaps, places)
        return above / below if below else float("nan")

    everywhere = np.arange(len(found.figures))
    is_compared = found is not real and found is not blended
    return MethodScores(
        name=name,
        psnr=None if found is real else mean(signal),
        gain=mean(signal - blended_signal) if is_compared else None,
        ssim=None if found is real else mean(similarity),
        of_gaps=_distance(found.gaps, real.gaps, everywhere),
        of_gaps_ratio=(
            centred_bootstrap(ratio, len(everywhere), 1, _RESAMPLES) if is_compared else None
        ),
        of_clips=_distance(found.clips, real.clips, everywhere),
        seam=ratio_of_means(at_keys, elsewhere),
    )


def _distance(
    made: list[Float[np.ndarray, "rows d"]],
    real: list[Float[np.ndarray, "rows d"]],
    places: Int[np.ndarray, " n"],
) -> float:
    """Return the Frechet distance on the clips at these places."""
    first, second = (
        fit_gaussian(np.concatenate([rows[place] for place in places])) for rows in (made, real)
    )
    return frechet_distance(first, second)

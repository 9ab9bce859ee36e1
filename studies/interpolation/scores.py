"""What every way to fill the gaps earns: on its frames, on its gaps and on its clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.confidence_intervals import Estimate, mean, ratio_of_means
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.frechet import fit_gaussian, frechet_distance
from magicvideo.evaluation.metrics.psnr import psnr
from magicvideo.evaluation.metrics.ssim import ssim
from magicvideo.evaluation.paired_comparison import MethodSamples, Rows
from magicvideo.evaluation.prompt_sets import from_uint8, real_videos, sample_prompts, to_uint8
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.shapes import Frames
from studies.interpolation.baselines import REAL, run_all_methods
from studies.interpolation.keyframe_pulse import changes_at_keys, check_interpolator


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """What one way to fill the gaps earns.

    Attributes:
        name: The method, or `REAL`.
        psnr: In dB, of the inserted frames, mean over clips; None for the real clips themselves.
        ssim: Structural similarity of the inserted frames; None for the real clips themselves.
        samples: Both clip by clip, and the features of `of_gaps`: what methods are compared by.
        of_gaps: Frechet distance to the real clips, whose samples are gaps: the judge's features of
            all their frames in order, keys included.
        of_clips: Frechet distance whose samples are whole clips. Of their frames it sees few, and
            hardly the order.
        seam: Mean change between frames at the keys, over that elsewhere.
    """

    name: str
    psnr: Estimate | None
    ssim: Estimate | None
    samples: MethodSamples
    of_gaps: float
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
    inserted = check_interpolator(pipeline)
    num_frames = num_keys + (num_keys - 1) * inserted
    prompts = sample_prompts(dataset, count, seed)
    videos = real_videos(dataset, prompts, num_frames, 1)
    real_gaps: list[Rows] = []
    seen: dict[str, _Seen] = {}
    for done, (prompt, video) in enumerate(zip(prompts, videos, strict=True), start=1):
        real = video[None]
        fps = dataset.clips[prompt.index].fps / (inserted + 1)
        filled = run_all_methods(pipeline, real.to(pipeline.device), prompt, fps, steps)
        for name, made in {**filled, REAL: real}.items():
            read = from_uint8(to_uint8(made[0].cpu()))[None]
            seen.setdefault(name, _Seen(MethodSamples(real_gaps))).add(read, real, inserted, judge)
        real_gaps.append(seen[REAL].samples.features[-1])
        on_clip(done)
    return [_summary(name, found, seen[REAL]) for name, found in seen.items()]


@dataclass
class _Seen:
    """What was measured of one method, clip after clip."""

    samples: MethodSamples
    changes: list[tuple[float, float]] = field(default_factory=list)
    """That at keys and that elsewhere."""
    clips: list[Rows] = field(default_factory=list)

    def add(self, made: Frames, real: Frames, inserted: int, judge: Judge) -> None:
        """Measure one more clip; the sizes are 1 x frames x 3 x h x w."""
        of_frames = judge.embed_videos(made[0, :, None])
        gaps = of_frames.unfold(0, inserted + 2, inserted + 1).flatten(start_dim=1)
        between = torch.arange(made.shape[1]) % (inserted + 1) != 0
        ours, theirs = made[:, between], real[:, between]
        self.samples.add(psnr(ours, theirs).item(), ssim(ours[0], theirs[0]), gaps.double().numpy())
        self.changes.append(changes_at_keys(made[0], inserted))
        self.clips.append(judge.embed_videos(made).double().numpy())


def _summary(name: str, found: _Seen, real: _Seen) -> MethodScores:
    samples, is_real = found.samples, found is real
    at_keys, elsewhere = np.array(found.changes).T
    made, goal = (fit_gaussian(np.concatenate(seen.clips)) for seen in (found, real))
    return MethodScores(
        name=name,
        psnr=None if is_real else mean(np.array(samples.psnr)),
        ssim=None if is_real else mean(np.array(samples.ssim)),
        samples=samples,
        of_gaps=samples.frechet,
        of_clips=frechet_distance(made, goal),
        seam=ratio_of_means(at_keys, elsewhere),
    )

"""What a judge sees of real clips, without which no other score of it means much.

Different subjects have the same background, and captions that differ in the subject only.
The same clips in other colours must still be recognised, and what nobody could recognise must not.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magicvideo.data.backgrounds import Background
from magicvideo.data.captions import canonical_caption
from magicvideo.data.dataset import ClipDataset, composite_background
from magicvideo.evaluation.confidence_intervals import Estimate, proportion
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.text_alignment import draw_pools, true_ranks
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from magicvideo.evaluation.subjects import DEFAULT_TONE, Subjects

_SUBJECTS, _POOL, _FRAMES, _STRIDE, _SEED = 200, 100, 16, 4, 2
_BACKGROUND = "blue"
_BLUR = 17 / 64  # of a frame's side, the width of a box
_LUMA = (0.299, 0.587, 0.114)  # BT.601

Video = Float[Tensor, "f 3 h w"]


def check_judge(judge: Judge, folder: Path) -> dict[str, Estimate]:
    """Return the judge's scores on real clips of all splits.

    Args:
        judge: Whom to check.
        folder: Prepared data.

    Returns:
        The share of clips whose own caption is first, with the clips as they are, in grey, with
        rolled colour channels, blurred, and as flat silhouettes; then the share of skin tones.
    """
    dataset = ClipDataset(folder, ("train", "validation", "heldout"), captioned=True)
    subjects = Subjects(dataset)
    rng = np.random.default_rng(_SEED)
    chosen = rng.permutation(len(subjects))[:_SUBJECTS]
    members = [subjects.clips[subject][0] for subject in chosen]
    captions = [
        canonical_caption(dataset.clips[i], _ground(dataset.clips[i].channels)) for i in members
    ]
    alike = subjects.alike[chosen][:, chosen].numpy()
    size = min(_POOL, int((~alike).sum(axis=1).min()) + 1)
    pools = draw_pools(range(len(chosen)), alike, size, _SEED)
    text = judge.embed_captions(captions).double().numpy()
    hits: dict[str, list[bool]] = {name: [] for name in _VIEWS}
    for place, index in enumerate(members):
        video, alpha = _video(dataset, index)
        for name, view in _VIEWS.items():
            feature = judge.embed_videos(view(video, alpha)[None]).double().numpy()
            hits[name].append(bool(true_ranks(feature @ text[pools[place]].T)[0] == 1))
    scores = {
        f"own caption first of {size}, {name}": proportion(np.array(found))
        for name, found in hits.items()
    }
    return scores | _tones(judge, dataset)


def scores_as_json(scores: dict[str, Estimate]) -> str:
    """Return the scores as JSON text for the judge's folder."""
    return json.dumps(scores, default=vars, indent=2) + "\n"


def _ground(channels: int) -> Background | None:
    return Background(_BACKGROUND) if channels == 4 else None


def _video(dataset: ClipDataset, index: int) -> tuple[Video, Float[Tensor, "f 1 h w"]]:
    """Return a clip on the background, and its alpha."""
    pixels = dataset.read_frames(index)
    pixels = pixels[np.minimum(np.arange(_FRAMES) * _STRIDE, len(pixels) - 1)]
    video = composite_background(pixels, _ground(pixels.shape[-1]))
    if pixels.shape[-1] == 3:
        return video, torch.ones_like(video[:, :1])
    return video, torch.from_numpy(pixels[..., 3].astype(np.float32) / 255)[:, None]


def _grey(video: Video, _: Tensor) -> Video:
    luma = torch.einsum("c,fchw->fhw", torch.tensor(_LUMA), video)
    return luma[:, None].expand_as(video)


def _rolled(video: Video, _: Tensor) -> Video:
    return video.roll(1, dims=1)


def _blurred(video: Video, _: Tensor) -> Video:
    """Average over boxes of 17 pixels in 64; edges are repeated."""
    width = 2 * round(_BLUR * video.shape[-1] / 2) + 1
    padded = F.pad(video, (width // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, kernel_size=width, stride=1)


def _flat(video: Video, alpha: Float[Tensor, "f 1 h w"]) -> Video:
    """Fill the outline with the figure's mean colour."""
    mean = (video * alpha).sum(dim=(0, 2, 3)) / alpha.sum().clamp(min=1)
    return torch.where(alpha > 0.5, mean[:, None, None], video)


_VIEWS: dict[str, Callable[[Video, Tensor], Video]] = {
    "as drawn": lambda video, _: video,
    "in grey": _grey,
    "channels rolled": _rolled,
    "blurred over 17 of 64 pixels": _blurred,
    "as a flat silhouette": _flat,
}


def _tones(judge: Judge, dataset: ClipDataset) -> dict[str, Estimate]:
    prompts = sample_prompts(dataset, min(_SUBJECTS, len(dataset)), _SEED)
    named = [prompt for prompt in prompts if prompt.tone != DEFAULT_TONE]
    if not named:
        return {}
    videos = real_videos(dataset, named, _FRAMES, _STRIDE)
    read = [judge.read_tones(video[None])[0] for video in videos]
    right = [found == prompt.tone for found, prompt in zip(read, named, strict=True)]
    return {"skin tone": proportion(np.array(right))}

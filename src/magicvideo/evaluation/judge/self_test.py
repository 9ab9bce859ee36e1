"""How well a judge judges: its scores on real clips, without which no other score means much."""

import json
from pathlib import Path

import numpy as np

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import Split
from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate, proportion
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.text_alignment import draw_pools
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from magicvideo.evaluation.scores import (
    Test,
    extract_features,
    ranks,
    tone_matches,
    top_k,
)

_PROMPTS, _POOL, _FRAMES, _STRIDE, _SEED = 200, 100, 16, 4, 2


def check_judge(judge: Judge, folder: Path) -> dict[str, dict[str, Estimate]]:
    """Return the judge's scores on real clips of each split, one plain background each.

    Args:
        judge: Whom to check.
        folder: Prepared data. Splits without clips are left out.
    """
    scores: dict[str, dict[str, Estimate]] = {}
    splits: tuple[Split, ...] = ("train", "heldout")
    for split in splits:
        try:
            dataset = ClipDataset(folder, (split,))
        except UserError:
            continue
        scores[split] = _check_split(judge, dataset)
    return scores


def scores_as_json(scores: dict[str, dict[str, Estimate]]) -> str:
    """Return the scores as JSON text for the judge's folder."""
    return json.dumps(scores, default=vars, indent=2) + "\n"


def _check_split(judge: Judge, dataset: ClipDataset) -> dict[str, Estimate]:
    prompts = sample_prompts(dataset, min(_PROMPTS, len(dataset)), _SEED)
    captions = np.array([prompt.caption for prompt in prompts])
    alike = captions[:, None] == captions
    size = min(_POOL, len(set(captions.tolist())))
    places = draw_pools(range(len(prompts)), alike, size, _SEED)
    pools = [[prompts[place].caption for place in row] for row in places]
    real = extract_features(judge, real_videos(dataset, prompts, _FRAMES, _STRIDE))
    tests: dict[str, Test] = {
        f"caption first among {size}": top_k(ranks(judge, pools), 1),
        "skin tone": tone_matches(prompts),
    }
    hits = {name: np.asarray(test(real, 0)) for name, test in tests.items()}
    return {name: proportion(found) for name, found in hits.items() if len(found)}

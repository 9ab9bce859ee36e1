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
    ranks_on_one_background,
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
    different = len({prompt.caption for prompt in prompts})
    pools = draw_pools([prompt.caption for prompt in prompts], min(_POOL, different), _SEED)
    real = extract_features(judge, real_videos(dataset, prompts, _FRAMES, _STRIDE))
    same = ranks_on_one_background(judge, dataset, prompts, pools)
    tests: dict[str, Test] = {
        f"caption first among {pools.shape[1]}": top_k(ranks(judge, prompts, pools), 1),
        f"caption first among {pools.shape[1]} on the same background": top_k(same, 1),
        "skin tone": tone_matches(prompts),
    }
    hits = {name: np.asarray(test(real, 0)) for name, test in tests.items()}
    return {name: proportion(found) for name, found in hits.items() if len(found)}

"""The scores of all seeds of a variant, and their comparison with the baseline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from magicvideo.evaluation.confidence_intervals import Estimate, mean
from magicvideo.training.recipe import Recipe
from studies.ablations.experiment_runs import AblationRun, expand_runs
from studies.ablations.scoring import Scores, read_scores
from studies.ablations.settings import Ablations, ScoringConfig


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One variant with the scores that are there.

    Attributes:
        variant: Its name.
        label: What the page calls it.
        recipe: How it is trained, with the first seed.
        scores: By seed; a seed without scores is not in it.
        seeds: All seeds that it should have.
    """

    variant: str
    label: str
    recipe: Recipe
    scores: dict[int, Scores]
    seeds: tuple[int, ...]

    def values(self, read: Callable[[Scores], float]) -> list[float]:
        """Return one number of each seed."""
        return [read(scores) for scores in self.scores.values()]


def collect_results(ablations: Ablations, name: str, judge_hash: str) -> list[VariantResult]:
    """Return the variants of an experiment, in the file's order, those of other experiments too.

    Scores count if they are by the judge of this hash.
    """
    runs = {(run.experiment, run.variant, run.seed): run for run in expand_runs(ablations, (name,))}
    variants = ablations.experiments[name].variants.items()
    return [
        _row(
            settings.label,
            variant,
            ablations.scoring,
            [runs[(*ablations.resolve_alias(name, variant), seed)] for seed in ablations.seeds],
            judge_hash,
        )
        for variant, settings in variants
    ]


def paired_difference(row: VariantResult, baseline: VariantResult, measure: str) -> Estimate | None:
    """Return how much larger a held-out error is than the baseline's, clip by clip.

    Clips are averaged over the seeds that both have, so that the bootstrapped interval is over
    clips alone.

    Args:
        row: A variant.
        baseline: What it is compared with.
        measure: `error` or `deviation`.
    """
    shared = row.scores.keys() & baseline.scores.keys()
    if not shared:
        return None
    differences = [
        np.subtract(
            row.scores[seed]["denoising"][measure], baseline.scores[seed]["denoising"][measure]
        )
        for seed in sorted(shared)
    ]
    return mean(np.mean(differences, axis=0))


def mean_and_range(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Return the mean over seeds and, of several, the least and the greatest."""
    scaled = [scale * value for value in values]
    shown = f"{np.mean(scaled):,.{digits}f}"
    if len(scaled) < 2:
        return shown
    return f"{shown} ({min(scaled):,.{digits}f} to {max(scaled):,.{digits}f})"


def _row(
    label: str, variant: str, scoring: ScoringConfig, runs: list[AblationRun], judge_hash: str
) -> VariantResult:
    read = ((run.seed, read_scores(run, scoring, judge_hash)) for run in runs)
    return VariantResult(
        variant=variant,
        label=label,
        recipe=runs[0].recipe,
        scores={seed: scores for seed, scores in read if scores is not None},
        seeds=tuple(run.seed for run in runs),
    )

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
    """One variant with its available scores.

    Attributes:
        variant: Its name.
        label: Its label on the page.
        recipe: The recipe of the run with the first seed.
        scores: Scores by seed; a seed without scores is missing.
        seeds: All seeds of the ablations.
    """

    variant: str
    label: str
    recipe: Recipe
    scores: dict[int, Scores]
    seeds: tuple[int, ...]

    def values(self, read: Callable[[Scores], float]) -> list[float]:
        """Return one number for each seed."""
        return [read(scores) for scores in self.scores.values()]


def collect_results(ablations: Ablations, name: str, judge_hash: str) -> list[VariantResult]:
    """Return the variants of an experiment, in the order of the file, aliases included.

    Only scores by the judge with this hash count.
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
    """Return the difference between the held-out error of a variant and that of the baseline.

    The difference of each clip is averaged over the seeds that both have, so the bootstrapped
    interval is over clips only.

    Args:
        row: A variant.
        baseline: The variant with which it is compared.
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
    """Return the mean over seeds and, if there are several, the minimum and the maximum."""
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

"""95 % confidence intervals of proportions, medians and means."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.stats import binom, binomtest

from magicvideo.errors import UserError

CONFIDENCE = 0.95
RESAMPLES = 2000
"""How often means and ratios are resampled."""
SEED = 0
"""Of all draws behind intervals."""


Statistic: TypeAlias = Callable[[Int[np.ndarray, " first"], Int[np.ndarray, " second"]], float]
"""Of two sets of samples, given as the places of those that are taken."""


@dataclass(frozen=True)
class Estimate:
    """A measured number, the count of samples behind it, and its 95 % interval if it has one."""

    value: float
    count: int
    low: float | None = None
    high: float | None = None


def proportion(hits: Shaped[np.ndarray, " n"]) -> Estimate:
    """Return the proportion of hits with its Wilson score interval.

    Raises:
        UserError: If there are no samples.
    """
    if not len(hits):
        raise UserError("A share of no samples is not defined; measure at least one video.")
    count = int(np.count_nonzero(hits))
    # Wilson's interval keeps its coverage near 0 and 1, where the normal one leaves [0, 1]
    interval = binomtest(count, len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(count / len(hits), len(hits), float(interval.low), float(interval.high))


def median(values: Shaped[np.ndarray, " n"]) -> Estimate:
    """Return the median with its interval between two order statistics (binomial law).

    The interval covers the median of any distribution with at least 95 % and needs no resampling.
    Fewer than six samples have none.

    Raises:
        UserError: If there are no samples.
    """
    if not len(values):
        raise UserError("A median of no samples is not defined; measure at least one video.")
    count, ordered = len(values), np.sort(values)
    # how many samples lie below the median is binomial with p = 1/2
    place = int(binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))
    bounds = (float(ordered[place - 1]), float(ordered[-place])) if place else (None, None)
    return Estimate(float(np.median(values)), count, *bounds)


def mean(values: Float[np.ndarray, " n"], seed: int = SEED) -> Estimate:
    """Return the mean with its percentile bootstrap interval."""
    return ratio_of_means(values, np.ones_like(values), seed)


def ratio_of_means(
    values: Float[np.ndarray, " n"], reference: Float[np.ndarray, " n"], seed: int = SEED
) -> Estimate:
    """Return mean(values) / mean(reference), both resampled in pairs for the interval.

    Pairs, because sample i of both sides shows the same prompt: its difficulty then cancels.

    Raises:
        UserError: If there are no samples.
    """
    if not len(values):
        raise UserError("A mean of no samples is not defined; measure at least one video.")
    rng = np.random.default_rng(seed)
    # one draw for both sides, so that pairs stay together
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = values[drawn].mean(axis=1) / reference[drawn].mean(axis=1)
        value = float(values.mean() / reference.mean())
    low, high = _middle(ratios)
    return Estimate(value, len(values), low, high)


def centred_bootstrap(
    statistic: Statistic, first: int, second: int, resamples: int, seed: int = SEED
) -> Estimate:
    """Return a statistic of two sets with a bootstrap interval centred on its value.

    Resampled sets repeat samples, which makes any distance between them larger than the measured
    one. So only the spread of the resampled values is taken, around the measured one.

    Args:
        statistic: Computed once on all samples and `resamples` times on samples with repetition.
        first: Count of samples of the first set; it is the count of the estimate.
        second: Count of samples of the second set.
        resamples: How often.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    value = statistic(np.arange(first), np.arange(second))
    drawn = np.array(
        [
            statistic(rng.integers(first, size=first), rng.integers(second, size=second))
            for _ in range(resamples)
        ]
    )
    low, high = _middle(drawn - drawn.mean())
    return Estimate(value, first, value + low, value + high)


def first_order_bootstrap(
    value: float,
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " m"],
    resamples: int,
    seed: int = SEED,
) -> Estimate:
    """Return a sum of pairwise terms with its bootstrap interval to first order.

    Of a kernel distance each sample's mean over all partners is known; resampling these means moves
    the distance twice as much as them, since every sample stands on both sides of a pair.

    Args:
        value: The measured sum.
        first: The mean term of each sample of the first set.
        second: Those of the second set.
        resamples: How often.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    moves = np.zeros(resamples)
    for terms in (first, second):
        drawn = [terms[rng.integers(len(terms), size=len(terms))].mean() for _ in moves]
        moves += 2 * (np.array(drawn) - terms.mean())
    low, high = _middle(moves - moves.mean())
    return Estimate(value, len(first), value + low, value + high)


def _middle(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return the quantiles between which 95 % of the values lie."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

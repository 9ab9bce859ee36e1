"""Intervals of 95 % around measured shares and means."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import binomtest

from magicvideo.errors import UserError

_CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A measured number, the count of samples behind it, and its 95 % interval if it has one."""

    value: float
    count: int
    low: float | None = None
    high: float | None = None


def share(hits: Shaped[np.ndarray, " n"]) -> Estimate:
    """Return the share of hits with its Wilson score interval, sound at 0 and 1 too.

    Raises:
        UserError: If there is no sample.
    """
    if not len(hits):
        raise UserError("A share of no samples is not defined; measure at least one video.")
    count = int(np.count_nonzero(hits))
    interval = binomtest(count, len(hits)).proportion_ci(_CONFIDENCE, method="wilson")
    return Estimate(count / len(hits), len(hits), float(interval.low), float(interval.high))


def mean(values: Float[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """Return the mean with its percentile bootstrap interval."""
    return ratio_of_means(values, np.ones_like(values), seed)


def ratio_of_means(
    values: Float[np.ndarray, " n"], reference: Float[np.ndarray, " n"], seed: int = 0
) -> Estimate:
    """Return mean(values) / mean(reference), both resampled in pairs for the interval.

    Pairs, because sample i of both sides shows the same prompt: its difficulty then cancels.

    Raises:
        UserError: If there is no sample.
    """
    if not len(values):
        raise UserError("A mean of no samples is not defined; measure at least one video.")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(values), size=(_RESAMPLES, len(values)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = values[drawn].mean(axis=1) / reference[drawn].mean(axis=1)
        value = float(values.mean() / reference.mean())
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Estimate(value, len(values), float(low), float(high))

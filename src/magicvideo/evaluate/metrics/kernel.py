"""Kernel distance (squared MMD with a polynomial kernel): KID of frames, KVD of videos.

Unbiased, so that the distance of few samples is not larger than that of many, which a Frechet
distance cannot say of itself. It needs independent samples: frames of one clip are alike, and their
pairs would lift the distance as the pair of a sample with itself does, so groups leave them out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from magicvideo.errors import UserError
from magicvideo.evaluate.metrics.frechet import Features, OtherFeatures

_ROWS = 1024  # of a kernel matrix that are in memory at once


@dataclass(frozen=True, kw_only=True)
class PolynomialKernel:
    """(gamma x.y + offset)^degree; the defaults are those of KID and KVD."""

    degree: int = 3
    gamma: float | None = None
    """None is one over the width of the features."""
    offset: float = 1.0


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The distance, and what each sample of both sets adds to it."""

    value: float
    first: Float[np.ndarray, " n"]
    """Mean kernel to its own set less mean kernel to the other, a sample of the first set."""
    second: Float[np.ndarray, " m"]
    """The same of the second set; the distance is the sum of both means."""


KID = PolynomialKernel()


def kernel_distance(
    first: Features,
    second: OtherFeatures,
    kernel: PolynomialKernel = KID,
    *,
    unbiased: bool = True,
    group: int = 1,
) -> KernelDistance:
    """Return the squared maximum mean discrepancy of two sets of features, in float64.

    Args:
        first: One row a sample.
        second: Another set of the same width.
        kernel: What compares two samples.
        unbiased: Whether a sample is left out where it meets its own group. JEDi keeps it.
        group: Rows in a row that are one independent sample, such as the frames of a clip, on
            both sides.

    Raises:
        UserError: If there are fewer than two samples on a side.
    """
    assert unbiased or group == 1  # a biased distance leaves no pair out
    assert len(first) % group == len(second) % group == 0
    fewest = min(len(first), len(second)) // group
    if fewest < 2:
        raise UserError(f"A kernel distance needs at least 2 samples on each side, not {fewest}.")
    first, second = first.astype(np.float64), second.astype(np.float64)
    left_out = group if unbiased else 0
    ours = _within(first, kernel, left_out) - _between(first, second, kernel)
    theirs = _within(second, kernel, left_out) - _between(second, first, kernel)
    return KernelDistance(value=float(ours.mean() + theirs.mean()), first=ours, second=theirs)


def _within(
    samples: Features, kernel: PolynomialKernel, left_out: int
) -> Float[np.ndarray, " samples"]:
    sums = np.concatenate([block.sum(axis=1) for block in _blocks(samples, samples, kernel)])
    if left_out:
        groups = samples.reshape(-1, left_out, samples.shape[1])
        own = _apply(groups @ groups.swapaxes(1, 2), samples.shape[1], kernel)
        sums -= own.sum(axis=2).reshape(-1)
    means: Float[np.ndarray, " samples"] = sums / (len(samples) - left_out)
    return means


def _between(
    samples: Features, others: OtherFeatures, kernel: PolynomialKernel
) -> Float[np.ndarray, " samples"]:
    return np.concatenate([block.mean(axis=1) for block in _blocks(samples, others, kernel)])


def _blocks(
    samples: Features, others: OtherFeatures, kernel: PolynomialKernel
) -> Iterator[Float[np.ndarray, "rows others"]]:
    for start in range(0, len(samples), _ROWS):
        yield _apply(samples[start : start + _ROWS] @ others.T, samples.shape[1], kernel)


def _apply(
    products: Float[np.ndarray, "*axes"], width: int, kernel: PolynomialKernel
) -> Float[np.ndarray, "*axes"]:
    gamma = 1 / width if kernel.gamma is None else kernel.gamma
    powers: Float[np.ndarray, "*axes"] = (gamma * products + kernel.offset) ** kernel.degree
    return powers

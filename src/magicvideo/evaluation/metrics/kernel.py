"""Kernel distance (squared MMD with a polynomial kernel): KID of frames, KVD of videos.

Unbiased, so that the distance of few samples is not larger than that of many, as a Frechet distance
is. Frames of a clip are alike, and their pairs would lift it: groups leave them out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.frechet import Features, OtherFeatures

Products: TypeAlias = Float[np.ndarray, "*axes"]
Sums: TypeAlias = Float[np.ndarray, " samples"]
Blocks: TypeAlias = Iterator[Float[np.ndarray, "rows others"]]
_ROWS = 1024  # of a kernel matrix that are in memory at once


@dataclass(frozen=True, kw_only=True)
class PolynomialKernel:
    """(gamma x.y + offset)^degree, as in KID and KVD; no gamma is one over the width."""

    degree: int = 3
    gamma: float | None = None
    offset: float = 1.0

    def of(self, products: Products, width: int) -> Products:
        """Return the kernel of scalar products of features of a width."""
        gamma = 1 / width if self.gamma is None else self.gamma
        powers: Products = (gamma * products + self.offset) ** self.degree
        return powers


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The distance, and what each sample of both sets adds: it is the sum of both means.

    A sample adds its mean kernel to its own set less that to the other.
    """

    value: float
    first: Float[np.ndarray, " n"]
    second: Float[np.ndarray, " m"]


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
        group: Rows in a row that are one independent sample, such as the frames of a clip.

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


def _within(samples: Features, kernel: PolynomialKernel, left_out: int) -> Sums:
    sums = np.concatenate([block.sum(axis=1) for block in _blocks(samples, samples, kernel)])
    if left_out:
        groups = samples.reshape(-1, left_out, samples.shape[1])
        own = kernel.of(groups @ groups.swapaxes(1, 2), samples.shape[1])
        sums -= own.sum(axis=2).reshape(-1)
    means: Sums = sums / (len(samples) - left_out)
    return means


def _between(samples: Features, others: OtherFeatures, kernel: PolynomialKernel) -> Sums:
    return np.concatenate([block.mean(axis=1) for block in _blocks(samples, others, kernel)])


def _blocks(samples: Features, others: OtherFeatures, kernel: PolynomialKernel) -> Blocks:
    for start in range(0, len(samples), _ROWS):
        yield kernel.of(samples[start : start + _ROWS] @ others.T, samples.shape[1])

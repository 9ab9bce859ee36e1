"""Scores of distributions: Frechet and kernel distance, precision, recall, Inception score.

All are computed in float64 on features that a network has extracted.

Sources: FID, Heusel et al. 2017 (1706.08500). KID, Binkowski et al. 2018 (1801.01401): its
estimator is unbiased, so few samples do not score worse than many. Precision and recall,
Kynkaanniemi et al. 2019 (1904.06991). FID-infinity, Chong and Forsyth 2019 (1911.07023): its bias
falls as 1/n with a slope that differs between models, so one n does not make two comparable.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import entr

from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import SEED, Statistic

Features: TypeAlias = Float[np.ndarray, "samples d"]
OtherFeatures: TypeAlias = Float[np.ndarray, "others d"]
Divisor: TypeAlias = Literal["n-1", "n"]


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Mean and covariance of a set of features, in float64."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def fit_gaussian(features: Features, divisor: Divisor = "n-1") -> Gaussian:
    """Fit a Gaussian to features.

    Args:
        features: One row per sample.
        divisor: What the sum of squares is divided by. Implementations differ here: "n-1" is
            unbiased and the habit of FID; "n" is what cd-fvd uses. Say which one with a number.

    Raises:
        UserError: If there are fewer than two samples.
    """
    if len(features) < 2:
        raise UserError(
            f"A Frechet distance needs at least 2 samples on each side, not {len(features)}."
        )
    # float64, because covariances of thousands of dimensions lose digits in float32
    centred = features.astype(np.float64)
    mean = centred.mean(axis=0)
    centred -= mean
    count = len(features) - 1 if divisor == "n-1" else len(features)
    return Gaussian(mean=mean, covariance=centred.T @ centred / count)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Return |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of A S2 A with A = S1^(1/2).
    That matrix is symmetric, so singular covariances (fewer samples than dimensions) are safe,
    where a root of the product S1 S2 turns complex or NaN.
    """
    # A = S1^(1/2) = U diag(sqrt(l)) U^T; rounding can leave an l slightly below 0
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # A S2 A has the eigenvalues of A A S2 = S1 S2, and is symmetric
    product = np.linalg.eigvalsh(root @ second.covariance @ root)
    # |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)) (Heusel et al., 1706.08500, equation 6)
    shift = np.square(first.mean - second.mean).sum()
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    # two equal sets can come out below 0 by rounding
    return max(0.0, float(shift + traces - 2 * np.sqrt(product.clip(min=0)).sum()))


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
    """The distance and the contribution of each sample; it is the sum of both means.

    A sample contributes its mean kernel with its own set minus that with the other set.
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
        first: One row per sample.
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
    # MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) (Binkowski et al., 1801.01401), split into the
    # contributions of both sides
    ours = _within(first, kernel, left_out) - _between(first, second, kernel)
    theirs = _within(second, kernel, left_out) - _between(second, first, kernel)
    return KernelDistance(value=float(ours.mean() + theirs.mean()), first=ours, second=theirs)


def _within(samples: Features, kernel: PolynomialKernel, left_out: int) -> Sums:
    sums = np.concatenate([block.sum(axis=1) for block in _blocks(samples, samples, kernel)])
    if left_out:
        groups = samples.reshape(-1, left_out, samples.shape[1])
        # a sample with itself, or a frame with its own clip, would bias the estimate upwards
        own = kernel.of(groups @ groups.swapaxes(1, 2), samples.shape[1])
        sums -= own.sum(axis=2).reshape(-1)
    means: Sums = sums / (len(samples) - left_out)
    return means


def _between(samples: Features, others: OtherFeatures, kernel: PolynomialKernel) -> Sums:
    return np.concatenate([block.mean(axis=1) for block in _blocks(samples, others, kernel)])


def _blocks(samples: Features, others: OtherFeatures, kernel: PolynomialKernel) -> Blocks:
    for start in range(0, len(samples), _ROWS):
        yield kernel.of(samples[start : start + _ROWS] @ others.T, samples.shape[1])


NEIGHBOURS = 3


def inside_manifold(
    samples: Features, manifold: OtherFeatures, neighbours: int = NEIGHBOURS
) -> Bool[np.ndarray, " samples"]:
    """Return which samples lie in the k-nearest-neighbour manifold of another set.

    The ball of a point reaches to its k-th neighbour in its own set. The share of generated samples
    inside the real manifold is precision; of real ones inside the generated manifold, recall.

    Raises:
        UserError: If the manifold has no more than `neighbours` points.
    """
    if len(manifold) <= neighbours:
        raise UserError(
            f"Precision and recall by {neighbours} neighbours need more samples on each side than "
            f"{neighbours}, not {len(manifold)}."
        )
    points = manifold.astype(np.float64)
    radii = np.concatenate(
        [
            # the nearest of all is the point itself
            np.partition(distances, neighbours, axis=1)[:, neighbours]
            for distances in _distances(points, points)
        ]
    )
    inside = [
        (distances <= radii).any(axis=1)
        # improved precision and recall (Kynkäänniemi et al., 1904.06991, equation 1)
        for distances in _distances(samples.astype(np.float64), points)
    ]
    return np.concatenate(inside)


def _distances(
    samples: Features, points: OtherFeatures
) -> Iterator[Float[np.ndarray, "rows others"]]:
    """Yield squared distances of some samples at a time to all points."""
    norms = np.square(points).sum(axis=1)
    for start in range(0, len(samples), _ROWS):
        rows = samples[start : start + _ROWS]
        # |x - y|^2 = |x|^2 - 2 x.y + |y|^2: one matrix product in place of all differences
        squares = np.square(rows).sum(axis=1)[:, None] - 2 * rows @ points.T + norms
        yield squares.clip(min=0)


_SLACK = 1e-3  # float32 probabilities of a thousand classes do not sum to one to the last digit


def inception_score(probabilities: Float[np.ndarray, "n classes"]) -> float:
    """Return exp of the mean divergence of each posterior from their mean, in one split.

    It lies between 1 and the number of classes, and grows with the count of samples: a perfect
    classifier of 101 balanced classes gives 57 with 100 samples and 100.5 with 10,000.

    Args:
        probabilities: One row per sample, summing to one.

    Raises:
        UserError: If the rows are not probabilities, such as logits.
    """
    posteriors = probabilities.astype(np.float64)
    sums = posteriors.sum(axis=1)
    if not len(posteriors) or posteriors.min() < 0 or np.abs(sums - 1).max() > _SLACK:
        raise UserError(
            "An Inception Score needs probabilities that sum to 1 for each picture; give a network "
            "that ends in a softmax."
        )
    # IS = exp(E_x KL(p(y|x) || p(y))) (Salimans et al., 1606.03498, section 4)
    marginal = posteriors.mean(axis=0)
    # the mean divergence KL(p(y|x) || p(y)) equals H(p(y)) - mean H(p(y|x))
    return float(np.exp(entr(marginal).sum() - entr(posteriors).sum(axis=1).mean()))


POINTS = 15


def extrapolate_to_infinity(
    distance: Statistic, first: int, second: int, seed: int = SEED
) -> float:
    """Return the intercept of a least-squares line through distances of subsets, over 1/n.

    Args:
        distance: Of two subsets, given as the places of their samples.
        first: Count of samples on one side; subsets shrink to a half, the same share on each side.
        second: Count of samples on the other side.
        seed: Of the draw of subsets.
    """
    rng = np.random.default_rng(seed)
    shares = 1 / np.linspace(1, 2, POINTS)  # evenly spaced over 1/n
    found = [
        distance(*(rng.permutation(n)[: max(2, round(share * n))] for n in (first, second)))
        for share in shares
    ]
    # to first order the bias falls as 1/n (Chong and Forsyth, 1911.07023), so the line is read at 0
    _, intercept = np.polyfit(1 / shares, found, deg=1)
    return float(intercept)

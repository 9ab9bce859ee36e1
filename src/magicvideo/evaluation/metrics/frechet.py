"""Frechet distance between two sets of features, each taken for a Gaussian."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from magicvideo.errors import UserError

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
        features: One row a sample.
        divisor: What the sum of squares is divided by. Implementations differ here: "n-1" is
            unbiased and the habit of FID; "n" is what cd-fvd uses. Say which one with a number.

    Raises:
        UserError: If there are fewer than two samples.
    """
    if len(features) < 2:
        raise UserError(
            f"A Frechet distance needs at least 2 samples on each side, not {len(features)}."
        )
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
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ second.covariance @ root)
    shift = np.square(first.mean - second.mean).sum()
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return max(0.0, float(shift + traces - 2 * np.sqrt(product.clip(min=0)).sum()))

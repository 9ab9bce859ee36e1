"""Precision and recall by k nearest neighbours: how much is real, and how much of the real is met.

Source: Kynkaanniemi et al. 2019 (1904.06991), improved precision and recall.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.frechet import Features, OtherFeatures

NEIGHBOURS = 3
_ROWS = 1024  # of a matrix of distances that are in memory at once


def inside_manifold(
    samples: Features, manifold: OtherFeatures, neighbours: int = NEIGHBOURS
) -> Bool[np.ndarray, " samples"]:
    """Tell which samples lie in the manifold of another set: in a ball around one of its points.

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
        squares = np.square(rows).sum(axis=1)[:, None] - 2 * rows @ points.T + norms
        yield squares.clip(min=0)

"""What a distance would be with endless samples: a line over 1/n, read at zero.

Source: Chong and Forsyth 2019 (1911.07023): the bias of FID and of its kin falls as 1/n, by a slope
that differs from model to model, so that two models at the same n cannot be compared either.
"""

import numpy as np

from magicvideo.evaluation.confidence_intervals import SEED, Statistic

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
    _, intercept = np.polyfit(1 / shares, found, deg=1)
    return float(intercept)

"""Inception Score: how sure a classifier is of each picture, and how many classes it sees."""

import numpy as np
from jaxtyping import Float
from scipy.special import entr

from magicvideo.errors import UserError

_SLACK = 1e-3  # float32 probabilities of a thousand classes do not sum to one to the last digit


def inception_score(probabilities: Float[np.ndarray, "n classes"]) -> float:
    """Return exp of the mean divergence of each posterior from their mean, in one split.

    It lies between 1 and the number of classes, and grows with the count of samples: a perfect
    classifier of 101 balanced classes gives 57 with 100 samples and 100.5 with 10,000.

    Args:
        probabilities: One row a sample, summing to one.

    Raises:
        UserError: If the rows are no probabilities: a network gave logits, for instance.
    """
    posteriors = probabilities.astype(np.float64)
    sums = posteriors.sum(axis=1)
    if not len(posteriors) or posteriors.min() < 0 or np.abs(sums - 1).max() > _SLACK:
        raise UserError(
            "An Inception Score needs probabilities that sum to 1 for each picture; give a network "
            "that ends in a softmax."
        )
    marginal = posteriors.mean(axis=0)
    return float(np.exp(entr(marginal).sum() - entr(posteriors).sum(axis=1).mean()))

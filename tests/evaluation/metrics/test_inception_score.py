import numpy as np
import pytest
from scipy.special import gammaln, xlogy

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.distribution import inception_score

CLASSES = 101


@pytest.mark.parametrize(
    ("posteriors", "expected"),
    [
        (np.full((6, 5), 0.2), 1.0),
        (np.tile(np.eye(7), (3, 1)), 7.0),
        (np.array([[0.9, 0.1], [0.1, 0.9]]), 1.44493482),
        (np.ones((4, 1)), 1.0),
        (np.tile(np.eye(3)[:1], (5, 1)), 1.0),
    ],
)
def test_known_posteriors(posteriors, expected):
    assert inception_score(posteriors) == pytest.approx(expected, abs=1e-8)


def power(factor, exponent, length):
    """The first coefficients of a power of a power series, by squaring."""
    result = np.eye(1, length)[0]
    while exponent:
        if exponent % 2:
            result = np.convolve(result, factor)[:length]
        factor = np.convolve(factor, factor)[:length]
        exponent //= 2
    return result


@pytest.mark.parametrize(
    ("count", "expected"), [(100, 56.9436), (500, 90.9645), (2048, 98.5436), (10_000, 100.4954)]
)
def test_a_perfect_classifier_scores_less_with_few_samples(count, expected):
    """It scores count * product(k ** (-k / count)) where a class is drawn k times.

    The mean over all draws is exact: a sum over all counts k of all classes is a coefficient of the
    power of one series. Each term is weighted as Poisson draws are, so that no number overflows.
    """
    labels = np.random.default_rng(0).integers(CLASSES, size=count)
    sizes = np.bincount(labels)
    of_draw = count * np.exp(-xlogy(sizes, sizes).sum() / count)
    assert inception_score(np.eye(CLASSES)[labels]) == pytest.approx(of_draw, rel=1e-12)
    k, rate = np.arange(count + 1), count / CLASSES
    weights = np.exp(xlogy(k, rate) - rate - gammaln(k + 1) - xlogy(k, k) / count)
    of_count = np.exp(count * np.log(count) - count - gammaln(count + 1))
    mean = count * power(weights, CLASSES, count + 1)[count] / of_count
    assert mean == pytest.approx(expected, abs=5e-5)


def test_logits_are_refused():
    with pytest.raises(UserError, match="probabilities that sum to 1"):
        inception_score(np.array([[2.0, -1.0], [0.5, 0.5]]))

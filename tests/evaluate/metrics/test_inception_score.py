import numpy as np
import pytest

from magicvideo.errors import UserError
from magicvideo.evaluate.metrics.inception_score import inception_score


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


@pytest.mark.parametrize(
    ("count", "expected", "spread"),
    [(100, 57.9, 3.0), (500, 90.9, 1.2), (2048, 98.6, 0.4), (10_000, 100.5, 0.1)],
)
def test_a_perfect_classifier_scores_less_with_few_samples(count, expected, spread):
    rng = np.random.default_rng(0)
    found = [inception_score(np.eye(101)[rng.integers(101, size=count)]) for _ in range(4)]
    assert np.mean(found) == pytest.approx(expected, abs=spread)


def test_logits_are_refused():
    with pytest.raises(UserError, match="probabilities that sum to 1"):
        inception_score(np.array([[2.0, -1.0], [0.5, 0.5]]))

import numpy as np
import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.distribution import inside_manifold


def test_copies_are_inside_the_manifold_and_distant_points_are_not():
    points = np.random.default_rng(0).standard_normal((11, 4))
    assert inside_manifold(points[:5], points).all()
    assert not inside_manifold(points + 100, points).any()


def test_a_ball_reaches_to_its_kth_neighbour():
    line = np.array([[0.0], [1], [3], [10]])
    samples = np.array([[-1.5], [-2.9], [9.9], [17.1], [20]])
    # with two neighbours the radii are 3, 2, 3 and 9
    assert inside_manifold(samples, line, 2).tolist() == [True, True, True, True, False]
    # with one they are 1, 1, 2 and 7
    assert inside_manifold(samples, line, 1).tolist() == [False, False, True, False, False]


def test_it_equals_the_definition_written_out():
    rng = np.random.default_rng(1)
    samples, manifold = rng.standard_normal((1030, 3)), 0.5 * rng.standard_normal((29, 3))
    own = np.linalg.norm(manifold[:, None] - manifold[None], axis=-1)
    radii = np.sort(own, axis=1)[:, 3]
    expected = (np.linalg.norm(samples[:, None] - manifold[None], axis=-1) <= radii).any(axis=1)
    assert 0 < expected.sum() < len(expected)
    assert inside_manifold(samples, manifold).tolist() == expected.tolist()


def test_too_few_points_are_refused():
    with pytest.raises(UserError, match="more samples on each side than 3, not 3"):
        inside_manifold(np.zeros((5, 2)), np.zeros((3, 2)))

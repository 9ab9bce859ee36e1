import numpy as np
import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.text_alignment import draw_pools, true_ranks

SAME = np.eye(23, dtype=bool)


def test_a_pool_starts_with_the_own_index_and_has_no_equal_one():
    alike = np.arange(23)[:, None] // 3 == np.arange(23) // 3  # always three are alike
    own = [*range(23), 4, 4]
    pools = draw_pools(own, alike, pool_size=11, seed=0)
    assert pools.shape == (25, 11)
    assert pools[:, 0].tolist() == own
    for pool in pools:
        assert len(set(pool.tolist())) == 11
        assert not alike[pool[0], pool[1:]].any()
    assert pools[23].tolist() != pools[24].tolist()  # the row is drawn, not the number


def test_pools_are_sampled_from_all_indices_and_differ():
    pools = draw_pools(range(23), SAME, pool_size=9, seed=0)
    assert set(pools[:, 1:].flat) == set(range(23))
    assert (draw_pools(range(23), SAME, pool_size=9, seed=0) == pools).all()
    assert (draw_pools(range(23), SAME, pool_size=9, seed=1) != pools).any()


def test_too_large_a_pool_is_refused():
    alike = SAME.copy()
    alike[0, 1] = alike[1, 0] = True
    with pytest.raises(UserError, match=r"pool of 23 captions needs as many .* but there are 22"):
        draw_pools(range(23), alike, pool_size=23, seed=0)


def test_ranks_count_better_scores_and_ties():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.1, 0.7, 0.8], [0.0, 0.0, 0.0]])
    assert true_ranks(similarity).tolist() == [1, 2, 3, 3]


def test_chance_is_one_in_the_pool():
    similarity = np.random.default_rng(0).random((5000, 10))
    assert (true_ranks(similarity) == 1).mean() == pytest.approx(0.1, abs=0.015)

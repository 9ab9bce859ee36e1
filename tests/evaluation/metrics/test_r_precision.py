import numpy as np
import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.text_alignment import draw_pools, true_ranks

CAPTIONS = [f"caption {number}" for number in range(23)]


def test_a_pool_holds_its_own_caption_first_and_no_other_twice():
    captions = [*CAPTIONS, *CAPTIONS[:5]]  # some prompts are asked twice
    pools = draw_pools(captions, pool_size=11, seed=0)
    assert pools.shape == (28, 11)
    for own, pool in enumerate(pools):
        assert pool[0] == own
        assert len({captions[place] for place in pool}) == 11


def test_pools_are_drawn_from_all_captions_and_differ():
    pools = draw_pools(CAPTIONS, pool_size=9, seed=0)
    assert set(pools[:, 1:].flat) == set(range(23))
    assert (draw_pools(CAPTIONS, pool_size=9, seed=0) == pools).all()
    assert (draw_pools(CAPTIONS, pool_size=9, seed=1) != pools).any()


def test_too_large_a_pool_is_refused():
    with pytest.raises(UserError, match=r"pool of 24 captions needs as many .* but there are 23"):
        draw_pools([*CAPTIONS, CAPTIONS[0]], pool_size=24, seed=0)


def test_ranks_count_what_is_better_and_ties():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.1, 0.7, 0.8], [0.0, 0.0, 0.0]])
    assert true_ranks(similarity).tolist() == [1, 2, 3, 3]


def test_chance_is_one_in_the_pool():
    similarity = np.random.default_rng(0).random((5000, 10))
    assert (true_ranks(similarity) == 1).mean() == pytest.approx(0.1, abs=0.015)

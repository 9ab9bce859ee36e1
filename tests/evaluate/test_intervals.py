import numpy as np
import pytest

from magicvideo.errors import UserError
from magicvideo.evaluate.intervals import mean, ratio_of_means, share


def test_wilson_interval_written_out():
    hits = np.array([True] * 60 + [False] * 40)
    z, n, p = 1.959963984540054, 100, 0.6
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = share(hits)
    assert (found.value, found.count) == (0.6, 100)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


def test_a_share_of_all_is_not_certain():
    found = share(np.array([True] * 7))
    assert found.value == 1.0
    assert found.low < 0.7


def test_the_mean_and_its_bootstrap_cover_the_truth():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    found = mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2.0 / 20, rel=0.15)


def test_a_ratio_of_equals_is_certain_however_much_they_vary():
    values = np.random.default_rng(0).exponential(size=31)
    found = ratio_of_means(2 * values, values)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_nothing_has_no_share_and_no_mean():
    with pytest.raises(UserError, match="share of no samples"):
        share(np.array([], dtype=bool))
    with pytest.raises(UserError, match="mean of no samples"):
        mean(np.array([]))

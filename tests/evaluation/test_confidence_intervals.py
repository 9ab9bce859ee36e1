import numpy as np
import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import (
    centred_bootstrap,
    first_order_bootstrap,
    mean,
    median,
    proportion,
    ratio_of_means,
)
from magicvideo.evaluation.metrics.distribution import kernel_distance


def test_the_wilson_interval_equals_its_formula():
    hits = np.array([True] * 60 + [False] * 40)
    z, n, p = 1.959963984540054, 100, 0.6
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = proportion(hits)
    assert (found.value, found.count) == (0.6, 100)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


def test_a_proportion_of_one_has_an_interval():
    found = proportion(np.array([True] * 7))
    assert found.value == 1.0
    assert found.low < 0.7


def test_the_mean_and_its_bootstrap_cover_the_truth():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    found = mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2.0 / 20, rel=0.15)


def test_the_ratio_of_equal_samples_has_a_zero_width_interval():
    values = np.random.default_rng(0).exponential(size=31)
    found = ratio_of_means(2 * values, values)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_of_the_median_uses_binomial_ranks():
    found = median(np.random.default_rng(0).permutation(20))
    # 5 or fewer of 20 tosses are heads with 2.07 %, 6 or fewer with 5.77 %
    assert (found.value, found.count, found.low, found.high) == (9.5, 20, 5.0, 14.0)


def test_the_interval_of_the_median_has_the_stated_coverage():
    rng = np.random.default_rng(1)
    found = [median(rng.exponential(size=31)) for _ in range(2000)]
    held = np.mean([each.low <= np.log(2) <= each.high for each in found])
    # by the binomial law of places, 97.1 %
    assert held == pytest.approx(0.971, abs=0.012)


def test_few_samples_have_a_median_without_an_interval():
    assert median(np.array([1, 2, 9, 9, 9])).low is None
    assert median(np.array([1, 2, 9, 9, 9, 10])).low == 1


def test_empty_samples_have_no_proportion_mean_or_median():
    with pytest.raises(UserError, match="median of no samples"):
        median(np.array([]))
    with pytest.raises(UserError, match="share of no samples"):
        proportion(np.array([], dtype=bool))
    with pytest.raises(UserError, match="mean of no samples"):
        mean(np.array([]))


def test_a_centred_interval_lies_around_the_measured_value():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 90))

    def squared_distance(ours, theirs):  # resampling makes it larger on average
        return float((first[ours].mean() - second[theirs].mean() + 1) ** 2 + first[ours].var())

    found = centred_bootstrap(squared_distance, 90, 90, 200)
    assert found.value == squared_distance(np.arange(90), np.arange(90))
    assert found.low < found.value < found.high
    assert found.count == 90
    assert centred_bootstrap(squared_distance, 90, 90, 200) == found


def test_the_interval_of_a_kernel_distance_is_that_of_new_samples():
    rng = np.random.default_rng(1)

    def draw():
        first, second = rng.standard_normal((70, 5)), 0.7 + rng.standard_normal((110, 5))
        return kernel_distance(first, second)

    found = draw()
    interval = first_order_bootstrap(found.value, found.first, found.second, 500)
    spread = np.std([draw().value for _ in range(200)])
    assert (interval.high - interval.low) / 2 / 1.96 == pytest.approx(spread, rel=0.35)


def test_the_first_order_bootstrap_doubles_the_spread_of_a_pairwise_mean():
    terms = np.array([1.0, 3.0, 3.0, 5.0])
    found = first_order_bootstrap(9.0, terms, np.zeros(2), 4000)
    # the mean of four has a deviation of sqrt(2) / 2, so 95 % of it lie within 1.4, and twice that
    assert 9 - 4 <= found.low < 9 - 2
    assert 9 + 2 < found.high <= 9 + 4
    assert (found.low + found.high) / 2 == pytest.approx(9, abs=0.3)

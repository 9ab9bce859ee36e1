import numpy as np
import pytest

from magicvideo.evaluation.metrics.distribution import (
    extrapolate_to_infinity,
    fit_gaussian,
    frechet_distance,
)


def test_the_extrapolation_is_the_intercept_of_a_line():
    found = extrapolate_to_infinity(
        lambda first, second: 3.0 + 40 / len(first) + 7 / len(second), 2000, 350
    )
    assert found == pytest.approx(3.0, abs=2e-4)  # counts are whole numbers


def test_the_extrapolation_removes_the_bias_of_few_samples():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((900, 21)), rng.standard_normal((1100, 21))

    def distance(ours, theirs):
        return frechet_distance(fit_gaussian(first[ours]), fit_gaussian(second[theirs]))

    plain = distance(np.arange(900), np.arange(1100))  # of one distribution: all of it is bias
    assert abs(extrapolate_to_infinity(distance, 900, 1100)) < plain / 3


def test_subsets_have_no_repetition_and_depend_only_on_the_seed():
    drawn = []

    def keep(first, second):
        assert len(set(first.tolist())) == len(first)
        drawn.append((len(first), len(second), first.tolist()))
        return 1.0

    extrapolate_to_infinity(keep, 30, 14, seed=3)
    once, drawn = drawn, []
    extrapolate_to_infinity(keep, 30, 14, seed=3)
    assert drawn == once
    assert [drawn[0][:2], drawn[-1][:2]] == [(30, 14), (15, 7)]

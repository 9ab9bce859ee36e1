import numpy as np
import pytest

from magicvideo.evaluation.run_report.plots import minmax_downsample, smoothed, start_end_mean
from magicvideo.evaluation.run_report.run import Series


def series(values):
    return Series(np.arange(1, len(values) + 1), np.array(values, dtype=float))


def test_downsampling_a_curve_keeps_every_peak_at_its_step():
    values = np.sin(np.arange(30_011) / 500)
    values[[17, 20_000]] = [9.0, -7.0]
    found = minmax_downsample(series(values))
    assert len(found.values) <= 800
    assert np.all(np.diff(found.steps) > 0)
    assert found.values[found.steps == 18] == 9
    assert found.values[found.steps == 20_001] == -7


def test_a_short_log_is_not_downsampled():
    found = minmax_downsample(series(range(123)))
    assert found.values.tolist() == list(range(123))


def test_smoothing_takes_the_mean_around_each_step():
    values = np.random.default_rng(3).normal(size=700)
    found = smoothed(series(values))
    assert (found.steps[0], found.steps[-1]) == (1, 700)
    assert len(found.steps) == 400
    half = 700 // 100
    for step, value in zip(found.steps.tolist(), found.values, strict=True):
        around = values[max(0, step - 1 - half) : step + half]
        assert value == pytest.approx(around.mean())


def test_one_value_is_its_own_curve():
    assert smoothed(series([3.5])).values.tolist() == [3.5]
    assert start_end_mean(series([3.5])) == (3.5, 3.5)


def test_start_and_end_are_means_of_a_fiftieth_of_the_log():
    assert start_end_mean(series([1, 3, *[50] * 146, 7, 9])) == ((1 + 3 + 50) / 3, (50 + 7 + 9) / 3)

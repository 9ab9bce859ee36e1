import numpy as np
import pytest

from magicvideo.evaluation.metrics.distribution import fit_gaussian, frechet_distance
from studies.paired_comparison import MethodSamples, paired_table

CLIPS = 6


@pytest.fixture
def real():
    rng = np.random.default_rng(1)
    return list(rng.standard_normal((CLIPS, 4, 3)))


def method(real, spoil, decibel):
    """Clips of very different difficulty, all `decibel` better than the same baseline."""
    found = MethodSamples(real)
    for place, features in enumerate(real):
        found.add(20 + 5 * place + decibel, 0.9 - 0.1 * place + decibel / 100, features + spoil)
    return found


def test_a_difference_that_all_clips_share_has_a_narrow_interval(real):
    gains = method(real, 2.0, 0.3).compared_to(method(real, 1.0, 0.0))
    for gain, size in ((gains.psnr, 0.3), (gains.ssim, 0.003)):
        assert [gain.value, gain.low, gain.high] == pytest.approx([size] * 3)
        assert gain.count == CLIPS
    # means are 2 and 1 away, in three dimensions
    assert gains.frechet.value == pytest.approx(4)
    assert gains.frechet.low == pytest.approx(4)
    assert gains.frechet.count == CLIPS


def test_the_interval_of_a_distance_is_over_clips_with_all_their_rows(real):
    far = method(real, 1.0, 0.0)
    far.features[0] = far.features[0] + 5
    near = method(real, 1.0, 0.0)
    gain = far.compared_to(near).frechet
    assert gain.low < gain.value < gain.high
    goal, made = fit_gaussian(np.concatenate(real)), fit_gaussian(np.concatenate(far.features))
    assert far.frechet == pytest.approx(frechet_distance(made, goal))
    assert gain.value == pytest.approx(far.frechet / near.frechet)


def test_a_zero_distance_gives_no_finite_ratio(real):
    gain = method(real, 1.0, 0.0).compared_to(method(real, 0.0, 0.0)).frechet
    assert gain.value > 1e6 or np.isnan(gain.value)


def test_a_table_has_all_but_the_reference(real):
    methods = {"a": method(real, 2.0, 0.3), "b": method(real, 1.0, 0.0)}
    lines = paired_table(methods, "b").splitlines()
    assert lines[0].startswith(
        "| compared with b | n | PSNR difference, dB [95 %] | SSIM difference"
    )
    row = "| a | 6 | 0.300 [0.300, 0.300] | 0.00300 [0.00300, 0.00300] | 4.000 [4.000, 4.000] |"
    assert lines[2:] == [row]

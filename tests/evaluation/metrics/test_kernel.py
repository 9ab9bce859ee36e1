import numpy as np
import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.distribution import PolynomialKernel, kernel_distance


def test_the_data_of_tf_gans_unit_test():
    rng = np.random.RandomState(0)  # TF-GAN's test draws in this way
    draws = rng.randn(512, 256), rng.randn(512, 256) * 1.1 + 0.05
    first, second = (draw.astype(np.float32) for draw in draws)
    found = kernel_distance(first, second)
    assert found.value == pytest.approx(0.0083886148, abs=5e-11)
    assert found.first.mean() + found.second.mean() == pytest.approx(found.value)
    assert kernel_distance(second, first).value == pytest.approx(found.value)


# JEDi's file prints 2436.5 beside degree 3 and offset 1, and these arguments give 23,088.083333
# there. It is the value of degree 2, offset 0 and gamma 1; 270.7 is that of gamma 1/3, the default.
@pytest.mark.parametrize(
    ("degree", "gamma", "offset", "expected"),
    [
        (2, 1.0, 0.0, 2436.5),
        (2, None, 0.0, 270.722222),
        (3, None, 1.0, 23_088.083333),
        (3, 1.0, 1.0, 608_615.25),
    ],
)
def test_the_self_test_of_jedi(degree, gamma, offset, expected):
    first = np.arange(1.0, 10).reshape(3, 3)
    second = np.array([[7.0, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    kernel = PolynomialKernel(degree=degree, gamma=gamma, offset=offset)
    found = kernel_distance(first, second, kernel, unbiased=False)
    assert found.value == pytest.approx(expected, rel=0, abs=5e-7)


def test_the_block_size_does_not_change_the_kernel_distance():
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((1031, 5)), rng.standard_normal((7, 5))
    kernels = [(1 + pair[0] @ pair[1].T / 5) ** 3 for pair in ((first, first), (second, second))]
    inner = [(k.sum() - np.trace(k)) / len(k) / (len(k) - 1) for k in kernels]
    expected = sum(inner) - 2 * ((1 + first @ second.T / 5) ** 3).mean()
    assert kernel_distance(first, second).value == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_is_unbiased_for_few_samples():
    rng = np.random.default_rng(4)
    found = [kernel_distance(*rng.standard_normal((2, 9, 6))).value for _ in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / len(found) ** 0.5


@pytest.mark.parametrize("group", [1, 3, 4])
def test_pairs_within_a_group_are_excluded(group):
    rng = np.random.default_rng(5)
    first, second = rng.standard_normal((12, 5)), rng.standard_normal((24, 5))
    inner = []
    for samples in (first, second):
        place = np.arange(len(samples)) // group
        pairs = (1 + samples @ samples.T / 5) ** 3
        inner.append(pairs[place[:, None] != place[None]].mean())
    expected = sum(inner) - 2 * ((1 + first @ second.T / 5) ** 3).mean()
    found = kernel_distance(first, second, group=group)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.first.mean() + found.second.mean() == pytest.approx(found.value)


def test_alike_frames_of_clips_of_one_distribution_are_at_zero_on_average():
    rng = np.random.default_rng(6)
    frames, by_clip, by_frame = 4, [], []
    for _ in range(300):
        clips = np.repeat(rng.standard_normal((2, 9, 6)), frames, axis=1)
        pair = clips + 0.1 * rng.standard_normal(clips.shape)
        by_clip.append(kernel_distance(*pair, group=frames).value)
        by_frame.append(kernel_distance(*pair).value)
    error = np.std(by_clip) / len(by_clip) ** 0.5
    assert abs(np.mean(by_clip)) < 4 * error
    assert np.mean(by_frame) > 20 * error


@pytest.mark.parametrize(("rows", "group"), [(1, 1), (3, 3)])
def test_one_sample_is_refused(rows, group):
    with pytest.raises(UserError, match="at least 2 samples on each side, not 1"):
        kernel_distance(np.zeros((6, 3)), np.zeros((rows, 3)), group=group)

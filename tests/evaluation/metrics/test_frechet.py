import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.distribution import Gaussian, fit_gaussian, frechet_distance


def gaussian(covariance, mean=None):
    covariance = np.asarray(covariance, np.float64)
    mean = np.zeros(len(covariance)) if mean is None else np.asarray(mean, np.float64)
    return Gaussian(mean=mean, covariance=covariance)


def tf_gan_pair():
    rng = np.random.RandomState(0)  # TF-GAN's test draws in this way
    return [rng.randn(512, 256).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (gaussian(np.eye(7)), gaussian(np.eye(7)), 0.0),
        (gaussian(np.eye(401)), gaussian(np.eye(401), np.ones(401)), 401.0),
        (gaussian(np.eye(5)), gaussian(4 * np.eye(5)), 5.0),
        (gaussian(np.diag([1, 4, 9]), [1, 2, 3]), gaussian(np.diag([4, 4, 1])), 19.0),
        (gaussian([[2, 1], [1, 2]]), gaussian(np.diag([3, 1])), 0.516685226452),
        (gaussian([[1, 0.5], [0.5, 1]]), gaussian([[1, -0.5], [-0.5, 1]]), 0.535898384862),
        (gaussian(np.diag([1, 0])), gaussian(np.diag([0, 1])), 2.0),
        (gaussian(np.zeros((4, 4))), gaussian(np.eye(4)), 4.0),
    ],
)
def test_known_gaussians(first, second, expected):
    assert frechet_distance(first, second) == pytest.approx(expected, rel=0, abs=1e-12)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=0, abs=1e-12)


def test_the_data_of_tf_gans_unit_test():
    first, second = tf_gan_pair()
    found = frechet_distance(fit_gaussian(first), fit_gaussian(second))
    assert found == pytest.approx(65.742724, abs=5e-7)
    found = frechet_distance(fit_gaussian(first, "n"), fit_gaussian(second, "n"))
    assert found == pytest.approx(65.616504, abs=5e-7)


def test_the_data_of_tf_gans_test_of_kernels():
    rng = np.random.RandomState(0)
    first, second = rng.randn(512, 256), rng.randn(512, 256) * 1.1 + 0.05
    found = frechet_distance(fit_gaussian(first), fit_gaussian(second))
    assert found == pytest.approx(75.455704, abs=5e-7)


def test_a_shift_of_one_in_every_dimension_of_inception():
    width = 2048
    shifted = gaussian(np.eye(width), np.ones(width))
    assert frechet_distance(gaussian(np.eye(width)), shifted) == pytest.approx(width, rel=1e-9)


def test_larger_scales_are_farther_apart():
    rng = np.random.default_rng(2)
    base = [rng.standard_normal((96, 17)) for _ in range(2)]
    found = [
        frechet_distance(*(fit_gaussian(features * scale) for features in base))
        for scale in (1, 3, 5, 7, 9)
    ]
    assert found == sorted(found)
    assert len(set(found)) == 5


@pytest.mark.parametrize(
    ("count", "width"),
    [
        *[(2, 2), (2, 3), (2, 256), (4, 4), (5, 64), (16, 256), (64, 17), (256, 256), (512, 256)],
        *[(32768, 2), (32768, 256)],
    ],
)
# scipy says of the singular ones that it may be inaccurate
@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_other_matrix_square_roots_give_the_same(count, width):
    """torch-fidelity's sweep; real eigenvalues of the plain product gave NaN at 4 x 4, seed 1.

    The trace of the root is also the sum of the singular values of R1 R2^T, where Ri^T Ri is a
    covariance. That takes no root of rounding errors, so it tells which way is the rough one.
    """
    rng = np.random.default_rng(1)
    features = [rng.standard_normal((count, width)) for _ in range(2)]
    first, second = map(fit_gaussian, features)
    plain = np.square(first.mean - second.mean).sum() + np.trace(
        first.covariance + second.covariance
    )
    roots = [np.linalg.qr(x - x.mean(axis=0), mode="r") / (count - 1) ** 0.5 for x in features]
    exact = plain - 2 * np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    slack = 1e-12 if count > width else 1e-7  # eigenvalues of singular ones are off by rounding
    found = frechet_distance(first, second)
    assert found == pytest.approx(exact, rel=slack, abs=slack)
    by_root = plain - 2 * np.trace(sqrtm(first.covariance @ second.covariance)).real
    assert found == pytest.approx(by_root, rel=1e-7, abs=slack)


def test_fewer_samples_than_dimensions_are_safe():
    features = np.random.default_rng(1).standard_normal((32, 400))
    fitted = fit_gaussian(features)
    assert frechet_distance(fitted, fitted) == pytest.approx(0, abs=1e-3)


@given(st.integers(2, 9), st.integers(1, 7), st.integers(0, 99))
def test_finite_and_symmetric(count, width, seed):
    rng = np.random.default_rng(seed)
    first, second = (fit_gaussian(rng.standard_normal((count, width))) for _ in range(2))
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there >= 0
    assert there == pytest.approx(back, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("width", "count", "draws"),
    [(64, 512, 5), (400, 512, 1), (400, 1024, 1), (400, 2048, 1), (400, 4096, 1), (400, 10000, 1)],
)
def test_the_bias_of_finite_samples_follows_the_formula(width, count, draws):
    rng = np.random.default_rng(5)
    found = [
        frechet_distance(*(fit_gaussian(rng.standard_normal((count, width))) for _ in range(2)))
        for _ in range(draws)
    ]
    assert np.mean(found) == pytest.approx(width**2 / (2 * count) + 2 * width / count, rel=0.05)


def test_one_sample_is_refused():
    with pytest.raises(UserError, match="at least 2 samples on each side, not 1"):
        fit_gaussian(np.zeros((1, 3)))

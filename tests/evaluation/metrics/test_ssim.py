import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import structural_similarity_index_measure

from magicvideo.evaluation.metrics.image_quality import ssim

FRAMES, HEIGHT, WIDTH = 2, 17, 23


@pytest.mark.parametrize(
    ("first", "second", "expected", "slack"),
    [(0.0, 1.0, 9.999e-5, 5e-9), (0.5, 0.6, 0.983609, 5e-7), (0.3, 0.3, 1.0, 1e-12)],
)
def test_ssim_of_constant_images_is_the_published_value(first, second, expected, slack):
    shape = (FRAMES, 3, HEIGHT, WIDTH)
    pair = [torch.full(shape, 2 * level - 1) for level in (first, second)]
    assert ssim(*pair) == pytest.approx(expected, rel=0, abs=slack)


def test_ssim_equals_the_published_formula():
    video, reference = torch.rand(2, 1, 3, HEIGHT, WIDTH) * 2 - 1
    weights = np.array([0.299, 0.587, 0.114])
    x, y = (
        np.tensordot(weights, (v[0].double().numpy() + 1) / 2, axes=1) for v in (video, reference)
    )

    def smooth(values):
        return gaussian_filter(values, 1.5, truncate=3.5, mode="mirror")[5:-5, 5:-5]

    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    parts = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4) * (2 * cov + 9e-4) / (vx + vy + 9e-4)
    assert ssim(video, reference) == pytest.approx(parts.mean(), rel=1e-6)


def test_pixels_from_minus_one_to_one_with_a_range_of_two_are_another_measure():
    """The constants scale with the range, but the first factor compares means, which moved."""
    video, reference = torch.rand(2, FRAMES, 1, HEIGHT, WIDTH).double()
    here = structural_similarity_index_measure(video, reference, data_range=1.0)
    doubled = structural_similarity_index_measure(2 * video, 2 * reference, data_range=2.0)
    moved = structural_similarity_index_measure(2 * video - 1, 2 * reference - 1, data_range=2.0)
    assert doubled == pytest.approx(here.item())
    assert abs(moved - here) > 0.01

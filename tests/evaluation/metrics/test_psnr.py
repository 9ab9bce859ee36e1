import math

import pytest
import torch

from magicvideo.evaluation.metrics.image_quality import psnr

B, FRAMES, HEIGHT, WIDTH = 2, 5, 24, 32


@pytest.mark.parametrize(("levels", "decibels"), [(1, 48.13), (2, 42.11), (4, 36.09), (8, 30.07)])
def test_noise_of_a_known_deviation(levels, decibels):
    signs = torch.randint(2, (B, FRAMES, 3, HEIGHT, WIDTH)) * 2 - 1
    found = psnr(signs * levels * 2 / 255, torch.zeros(signs.shape))
    assert found.tolist() == pytest.approx([decibels] * B, abs=0.005)


def test_each_clip_has_its_own_score():
    reference = torch.zeros(2, 3, 3, 5, 7)
    frames = reference.clone()
    frames[1] += 2.0
    assert psnr(frames, reference).tolist() == [math.inf, 0.0]

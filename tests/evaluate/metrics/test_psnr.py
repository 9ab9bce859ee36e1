import math

import pytest
import torch

from magicvideo.evaluate.metrics.psnr import psnr

B, FRAMES, HEIGHT, WIDTH = 2, 5, 96, 128


@pytest.mark.parametrize(("levels", "decibels"), [(1, 48.13), (2, 42.11), (4, 36.09), (8, 30.07)])
def test_noise_of_a_known_deviation(levels, decibels):
    noise = torch.randn(B, FRAMES, 3, HEIGHT, WIDTH) * levels * 2 / 255
    found = psnr(noise, torch.zeros_like(noise))
    assert found.tolist() == pytest.approx([decibels] * B, abs=0.02)


def test_each_clip_has_its_own_figure():
    reference = torch.zeros(2, 3, 3, 5, 7)
    frames = reference.clone()
    frames[1] += 2.0
    assert psnr(frames, reference).tolist() == [math.inf, 0.0]

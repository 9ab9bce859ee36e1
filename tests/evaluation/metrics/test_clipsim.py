import numpy as np
import pytest

from magicvideo.evaluation.metrics.text_alignment import caption_similarity


def test_clipsim_is_the_mean_of_cosines():
    caption = np.array([2.0, 0, 0], np.float32)
    frames = np.array([[3, 0, 0], [0, 5, 0], [-1, 0, 0], [1, 1, 0]], np.float32)
    expected = (1 + 0 - 1 + 0.5**0.5) / 4  # neither clamped nor times 100
    assert caption_similarity(frames, caption) == pytest.approx(expected, rel=1e-12)

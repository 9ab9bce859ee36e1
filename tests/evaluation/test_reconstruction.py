import pytest
import torch

from magicvideo.errors import UserError
from magicvideo.evaluation.evaluator import score_autoencoder
from magicvideo.models.autoencoder import PatchAutoencoder


@pytest.fixture
def linear(every_clip):
    """An autoencoder with only the best linear code of these clips."""
    autoencoder = PatchAutoencoder(
        latent_channels=40, patch_size=4, widths=(8, 12), norm_num_groups=4
    )
    frames = [
        every_clip.sample(index, rng, num_frames=1).frames
        for index, rng in enumerate(_generators(len(every_clip)))
    ]
    autoencoder.init_from_pca(torch.cat(frames))
    return autoencoder


def _generators(count):
    import numpy as np

    return [np.random.default_rng(number) for number in range(count)]


def test_a_good_autoencoder_scores_between_a_flat_image_and_8_bits(linear, every_clip):
    score = score_autoencoder(linear, every_clip, count=7, num_frames=3, seed=0)
    assert score.measured.count == 7
    assert score.chance.value < 20 < 30 < score.measured.value < score.real.value
    assert score.real.value > 55
    assert score == score_autoencoder(linear, every_clip, count=7, num_frames=3, seed=0)


def test_more_clips_than_there_are_is_refused(linear, every_clip):
    with pytest.raises(UserError, match=r"reconstructs 19 clips, but .* has 18"):
        score_autoencoder(linear, every_clip, count=19, num_frames=3, seed=0)


def test_clips_of_a_size_that_does_not_fit_are_refused(every_clip):
    autoencoder = PatchAutoencoder(patch_size=10, widths=(8, 12), norm_num_groups=4)
    with pytest.raises(UserError, match=r"have the size 24, .* needs multiples of 10"):
        score_autoencoder(autoencoder, every_clip, count=7, num_frames=3, seed=0)

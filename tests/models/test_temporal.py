import pytest
import torch
from networks import randomise

from magicvideo.models.temporal import DirectedTemporalAttention

VIDEOS, FRAMES, CHANNELS, HEIGHT, WIDTH = 2, 5, 6, 3, 7
CHANGED = 3


def make(mode="directed"):
    return randomise(DirectedTemporalAttention(channels=CHANNELS, num_heads=2, mode=mode))


def features():
    return torch.randn(VIDEOS * FRAMES, CHANNELS, HEIGHT, WIDTH)


def reach(mode):
    """How far each frame moves when one frame is replaced."""
    attention, x = make(mode), features()
    changed = x.clone().view(VIDEOS, FRAMES, CHANNELS, HEIGHT, WIDTH)
    changed[:, CHANGED] = torch.randn(VIDEOS, CHANNELS, HEIGHT, WIDTH)
    moved = attention(x, FRAMES) - attention(changed.flatten(0, 1), FRAMES)
    return moved.view(VIDEOS, FRAMES, -1).abs().amax(dim=(0, 2))


def test_a_frame_never_reads_a_later_one():
    moved = reach("directed")
    assert moved[:CHANGED].max() == 0
    assert moved[CHANGED:].min() > 1e-3


@pytest.mark.parametrize("mode", ["printed", "bidirectional"])
def test_other_masks_let_later_frames_in(mode):
    assert reach(mode).min() > 1e-3


def test_positions_and_videos_are_apart():
    attention, x = make(), features()
    changed = x.clone()
    changed[FRAMES:, :, 1, 4] = torch.randn(FRAMES, CHANNELS)  # one position of one video
    moved = (attention(x, FRAMES) - attention(changed, FRAMES)).abs().amax(dim=1)
    assert moved[FRAMES:, 1, 4].min() > 1e-3
    moved[FRAMES:, 1, 4] = 0
    assert moved.max() == 0


def test_starts_as_the_image_model():
    attention = DirectedTemporalAttention(channels=CHANNELS, num_heads=2)
    assert attention(features(), FRAMES).abs().max() == 0


def test_names_the_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="channels=6 is not a multiple of num_heads=4"):
        DirectedTemporalAttention(channels=6, num_heads=4)


@pytest.mark.parametrize("mode", ["none", "causal"])
def test_names_the_mode_that_it_lacks(mode):
    # beartype refuses what is no mode at all, and the class what means no attention
    with pytest.raises(Exception, match=mode):
        DirectedTemporalAttention(channels=6, num_heads=2, mode=mode)

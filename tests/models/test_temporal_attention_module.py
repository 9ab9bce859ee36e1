import pytest
import torch
from networks import randomise

from magicvideo.models.temporal_attention import DirectedTemporalAttention

VIDEOS, FRAMES, CHANNELS, HEIGHT, WIDTH = 2, 5, 6, 3, 7
CHANGED = 3


def make(mode="directed"):
    return randomise(DirectedTemporalAttention(channels=CHANNELS, num_heads=2, mode=mode))


def features():
    return torch.randn(VIDEOS * FRAMES, CHANNELS, HEIGHT, WIDTH)


def window_size(mode):
    """How far each frame moves when one frame is replaced."""
    attention, x = make(mode), features()
    changed = x.clone().view(VIDEOS, FRAMES, CHANNELS, HEIGHT, WIDTH)
    changed[:, CHANGED] = torch.randn(VIDEOS, CHANNELS, HEIGHT, WIDTH)
    moved = attention(x, FRAMES) - attention(changed.flatten(0, 1), FRAMES)
    return moved.view(VIDEOS, FRAMES, -1).abs().amax(dim=(0, 2))


def test_a_frame_never_reads_a_later_one():
    moved = window_size("directed")
    assert moved[:CHANGED].max() == 0
    assert moved[CHANGED:].min() > 1e-3


@pytest.mark.parametrize("mode", ["post_softmax_mask", "bidirectional"])
def test_other_masks_attend_to_later_frames(mode):
    assert window_size(mode).min() > 1e-3


def test_positions_and_videos_are_independent():
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


@pytest.mark.parametrize("window_size", [None, 1, 2, 4, 9])
@pytest.mark.parametrize("lengths", [(5,), (1, 4), (3, 2), (1, 1, 1, 1, 1)])
def test_consecutive_chunks_equal_the_whole_video(window_size, lengths):
    attention = randomise(DirectedTemporalAttention(CHANNELS, 2, window_size=window_size))
    x = features().view(VIDEOS, FRAMES, CHANNELS, HEIGHT, WIDTH)
    made, past = [], None
    for window in x.split(lengths, dim=1):
        update, past = attention.forward_chunk(window.flatten(0, 1), window.shape[1], past)
        made.append(update.view(window.shape))
    torch.testing.assert_close(torch.cat(made, dim=1).flatten(0, 1), by_hand(attention, x))
    kept = FRAMES if window_size is None else min(FRAMES, window_size - 1)
    assert past.keys.shape == past.values.shape == (VIDEOS * HEIGHT * WIDTH, 2, kept, CHANNELS // 2)


def by_hand(attention, x):
    """Attention of each frame to its visible frames, one frame at a time."""
    window_size = attention.window_size or FRAMES
    updates = [
        DirectedTemporalAttention.forward(
            attention,
            x[:, max(0, last + 1 - window_size) : last + 1].flatten(0, 1),
            min(window_size, last + 1),
        ).view(VIDEOS, -1, CHANNELS, HEIGHT, WIDTH)[:, -1]
        for last in range(FRAMES)
    ]
    return torch.stack(updates, dim=1).flatten(0, 1)


@pytest.mark.parametrize("mode", ["post_softmax_mask", "bidirectional"])
def test_other_masks_cannot_be_chunked(mode):
    attention, x = make(mode), features()
    _, past = attention.forward_chunk(x, FRAMES, None)
    with pytest.raises(ValueError, match=f"mode='{mode}' cannot continue earlier frames"):
        attention.forward_chunk(x, FRAMES, past)
    with pytest.raises(ValueError, match=f"window_size=3 with mode='{mode}'"):
        DirectedTemporalAttention(CHANNELS, 2, mode, window_size=3)


def test_errors_name_the_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="channels=6 is not a multiple of num_heads=4"):
        DirectedTemporalAttention(channels=6, num_heads=4)


@pytest.mark.parametrize("mode", ["none", "causal"])
def test_errors_name_an_unknown_mode(mode):
    # beartype refuses what is no mode at all, and the class what means no attention
    with pytest.raises(Exception, match=mode):
        DirectedTemporalAttention(channels=6, num_heads=2, mode=mode)

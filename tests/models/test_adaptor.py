import pytest
import torch
from networks import randomise

from magicvideo.models.adaptor import FrameAdaptor, IdentityAdaptor, build_adaptor

VIDEOS, FRAMES, MOST_FRAMES, CHANNELS, HEIGHT, WIDTH = 2, 3, 5, 6, 7, 4


def features():
    return torch.randn(VIDEOS * FRAMES, CHANNELS, HEIGHT, WIDTH)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_scales_and_shifts_each_frame_and_channel(order):
    adaptor, offset = randomise(FrameAdaptor(MOST_FRAMES, CHANNELS)), torch.randn(VIDEOS, CHANNELS)
    x = features().contiguous(memory_format=order)
    plain, moved = adaptor(x, FRAMES), adaptor(x, FRAMES, offset)
    assert moved.is_contiguous(memory_format=order)
    for video in range(VIDEOS):
        for frame in range(FRAMES):
            n = video * FRAMES + frame
            for c in range(CHANNELS):
                expected = adaptor.scale[frame, c] * x[n, c] + adaptor.shift[frame, c]
                torch.testing.assert_close(plain[n, c], expected)
                torch.testing.assert_close(moved[n, c], expected + offset[video, c])


def test_starts_as_the_identity():
    x = features()
    assert torch.equal(FrameAdaptor(MOST_FRAMES, CHANNELS)(x, FRAMES), x)


def test_the_replacement_of_an_adaptor_adds_only_its_offset():
    x, offset = features(), torch.randn(VIDEOS, CHANNELS)
    assert torch.equal(IdentityAdaptor()(x, FRAMES), x)
    expected = x.view(VIDEOS, FRAMES, CHANNELS, HEIGHT, WIDTH) + offset[:, None, :, None, None]
    assert torch.equal(IdentityAdaptor()(x, FRAMES, offset), expected.flatten(0, 1))


def test_an_adaptor_is_built_only_if_enabled():
    assert isinstance(build_adaptor(MOST_FRAMES, CHANNELS, enabled=True), FrameAdaptor)
    assert not list(build_adaptor(MOST_FRAMES, CHANNELS, enabled=False).parameters())

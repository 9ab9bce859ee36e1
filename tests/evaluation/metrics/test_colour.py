import pytest
import torch

from magicvideo.data.backgrounds import COLOURS
from magicvideo.evaluation.metrics.attributes import background_colour

FRAMES, HEIGHT, WIDTH = 3, 24, 40


def plain(rgb):
    pixels = torch.tensor(rgb, dtype=torch.float32) / 127.5 - 1
    return pixels[None, :, None, None].expand(FRAMES, 3, HEIGHT, WIDTH).clone()


@pytest.mark.parametrize(("name", "rgb"), COLOURS.items())
def test_every_plain_colour_is_read_through_noise_and_a_figure(name, rgb):
    video = plain(rgb) + 0.1 * torch.randn(FRAMES, 3, HEIGHT, WIDTH)
    video[..., 4:20, 6:34] = torch.rand(3, 1, 1)
    video[..., :5, :10] = 1.0  # a figure that fills one corner
    assert background_colour(video.clamp(-1, 1)) == name

import pytest
import torch

from magicvideo.data.degrade import blur, downsample, paired_random_crop, random_degrade
from magicvideo.rng import StackedGenerator

FRAMES, HEIGHT, WIDTH, FACTOR = 5, 12, 20, 4


def frames(height=HEIGHT, width=WIDTH, number=FRAMES):
    return torch.rand(number, 3, height, width) * 2 - 1


def draws(seed=0):
    return StackedGenerator([torch.Generator().manual_seed(seed)])


def test_area_resampling_is_the_mean_of_squares():
    large = frames()
    small = downsample(large, FACTOR)
    assert small.shape == (FRAMES, 3, HEIGHT // FACTOR, WIDTH // FACTOR)
    square = large[3, 1, 4:8, 12:16]
    assert small[3, 1, 1, 3] == pytest.approx(square.mean().item(), abs=1e-6)


@pytest.mark.parametrize("kernel", ["area", "bilinear", "bicubic"])
def test_every_kernel_keeps_colours_and_places(kernel):
    flat = torch.tensor([0.3, -1.0, 0.8])[None, :, None, None].expand(2, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(downsample(flat, FACTOR, kernel), flat[..., ::FACTOR, ::FACTOR])
    ramp = torch.arange(80.0).expand(1, 3, 8, 80)
    centres = torch.arange(20.0) * FACTOR + 1.5
    small = downsample(ramp, FACTOR, kernel)[0, 0, 0]
    torch.testing.assert_close(small[3:-3], centres[3:-3])


def test_a_blur_spreads_a_point_by_its_sigma_and_keeps_the_sum():
    point = torch.zeros(3, 2, 15, 17)
    point[:, :, 7, 9] = 1
    sigmas = torch.tensor([0.0, 0.6, 1.0])
    spread = blur(point, sigmas)
    torch.testing.assert_close(spread[0], point[0])
    torch.testing.assert_close(spread.sum(dim=(2, 3)), torch.ones(3, 2))
    for axis, length, centre in ((2, 15, 7), (3, 17, 9)):
        places = torch.arange(length) - centre
        profile = spread.sum(dim=5 - axis)
        variance = (profile * places.square()).sum(dim=-1)
        # cut at three pixels and sampled at whole ones, so near to the square and not equal to it
        torch.testing.assert_close(
            variance[1:], sigmas[1:, None].square().expand(2, 2), atol=0.03, rtol=0
        )


def test_a_fraction_of_frames_is_degraded_differently():
    large = frames(16, 24, number=200)
    by_area = downsample(large, FACTOR)
    assert torch.equal(random_degrade(large, FACTOR, 0.0, draws()), by_area)
    some = random_degrade(large, FACTOR, 0.3, draws())
    other = (some != by_area).flatten(1).any(dim=1)
    assert 0.2 < other.float().mean() < 0.4
    every = random_degrade(large, FACTOR, 1.0, draws())
    assert (every != by_area).flatten(1).any(dim=1).all()
    assert torch.equal(random_degrade(large, FACTOR, 0.3, draws()), some)
    assert not torch.equal(random_degrade(large, FACTOR, 0.3, draws(1)), some)


def test_crops_of_a_pair_show_the_same_places():
    large = frames(24, 24, number=40)
    cut_large, cut_small = paired_random_crop(large, downsample(large, FACTOR), 3, draws())
    assert cut_large.shape == (40, 3, 12, 12)
    assert cut_small.shape == (40, 3, 3, 3)
    torch.testing.assert_close(downsample(cut_large, FACTOR), cut_small)
    places = set()
    for frame, crop in zip(large, cut_large, strict=True):
        places |= {
            (top, left)
            for top in range(0, 13, FACTOR)
            for left in range(0, 13, FACTOR)
            if torch.equal(frame[:, top : top + 12, left : left + 12], crop)
        }
    assert {top for top, _ in places} == {left for _, left in places} == {0, 4, 8, 12}
    whole, _ = paired_random_crop(large, downsample(large, FACTOR), 6, draws())
    assert torch.equal(whole, large)

import pytest
import torch

from magicvideo.evaluation.prompt_sets import from_uint8, to_uint8
from studies.upscaler.evaluation import REAL, UpscaleMethod, resize_methods, score_static_flicker

FRAMES, HEIGHT, WIDTH, FACTOR = 4, 6, 10, 2


def shown(video):
    return from_uint8(to_uint8(video))


@pytest.fixture
def half_still():
    """The left half of the frames stands still, the right half is noise."""
    video = torch.rand(1, 3, HEIGHT, WIDTH).repeat(FRAMES, 1, 1, 1)
    video[..., WIDTH // 2 :] = torch.rand(FRAMES, 3, HEIGHT, WIDTH // 2)
    return shown(video)


def blink(small, _seed):
    """Enlarge by repeating, and let every other frame be two levels of 255 brighter."""
    large = small.repeat_interleave(FACTOR, dim=2).repeat_interleave(FACTOR, dim=3)
    large[1::2] += 4 / 255
    return large


def score(videos, *, is_large):
    done = []
    methods = [UpscaleMethod("blink", blink)]
    found = score_static_flicker(methods, videos, FACTOR, is_large=is_large, on_clip=done.append)
    assert done == list(range(1, len(videos) + 1))
    return {row.name: row.flicker for row in found}


def test_only_static_pixels_count_and_clips_without_them_are_skipped(half_still):
    moving = shown(torch.rand(FRAMES, 3, HEIGHT, WIDTH))
    found = score([half_still, moving], is_large=False)
    assert list(found) == ["blink", REAL]
    assert found["blink"].value == pytest.approx(2, rel=1e-4)
    assert found["blink"].count == 1
    assert found[REAL].value == 0
    assert score([moving], is_large=False) == {}


def test_large_clips_are_downsampled_and_their_own_flicker_is_reported(half_still):
    """In a region whose mean stands still, what is in it may still move."""
    large = half_still.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    large[1::2, :, ::2, :2] += 2 / 255
    large[1::2, :, 1::2, :2] -= 2 / 255
    found = score([shown(large)], is_large=True)
    assert found["blink"].value == pytest.approx(2, rel=1e-4)
    assert found[REAL].value == pytest.approx(1 / 5, rel=0.1)


def test_bicubic_flickers_only_within_its_kernel(half_still, pipeline):
    bicubic, lanczos = score_static_flicker(
        resize_methods(pipeline), [half_still], FACTOR, is_large=False, on_clip=lambda _: None
    )[:2]
    assert 0 < bicubic.flicker.value < 20
    assert lanczos.flicker.value != bicubic.flicker.value


def test_flicker_in_corners_is_relative_to_the_real_clips():
    video = torch.zeros(FRAMES, 3, 16, 24)
    video[1::2, :, :2, :3] = 0.1
    video[1::2, :, 8, 12] = 0.9  # no corner

    def repeat(small, _seed):
        return small.repeat_interleave(FACTOR, dim=2).repeat_interleave(FACTOR, dim=3)

    methods = [
        UpscaleMethod("as it is", repeat),
        UpscaleMethod("twice", lambda small, _: 2 * repeat(small, 0)),
    ]
    found = score_static_flicker(methods, [video], FACTOR, is_large=False, on_clip=lambda _: None)
    assert [row.in_corners.value for row in found] == pytest.approx([1, 2, 1])
    still = torch.zeros(FRAMES, 3, 16, 24)
    found = score_static_flicker(methods, [still], FACTOR, is_large=False, on_clip=lambda _: None)
    assert [row.in_corners for row in found] == [None] * 3

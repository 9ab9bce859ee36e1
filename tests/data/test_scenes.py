import numpy as np
import pytest

from magicvideo.data.scenes import find_cuts, longest_scene
from magicvideo.data.sources.synthetic import Scene, render_frame


def film(*scenes):
    """Join scenes of given lengths into one clip."""
    parts = []
    for scene, frames in scenes:
        parts += [render_frame(scene, time, 40) for time in np.linspace(0, 1, frames)]
    return np.stack(parts)


WHITE = Scene("circle", "red", "left", "white")
BLACK = Scene("square", "blue", "up", "black")
PINK = Scene("diamond", "green", "right", "pink")


def test_known_cuts_are_found_and_no_others():
    pixels = film((WHITE, 11), (BLACK, 7), (PINK, 19), (WHITE, 5))
    assert find_cuts(pixels) == [11, 18, 37]
    assert np.array_equal(longest_scene(pixels), pixels[18:37])


def test_cuts_of_transparent_clips_are_found_by_colour():
    pixels = film((WHITE, 6), (PINK, 9))
    alpha = np.full((*pixels.shape[:3], 1), 255, np.uint8)
    alpha[3] = 0
    assert find_cuts(np.concatenate([pixels, alpha], axis=-1)) == [6]


@pytest.mark.parametrize("scene", [WHITE, BLACK, PINK])
def test_motion_is_not_a_cut(scene):
    pixels = film((scene, 9))
    assert find_cuts(pixels) == []
    assert np.array_equal(longest_scene(pixels), pixels)


def test_a_pan_a_flash_and_a_fade_are_not_cuts():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (5, 60, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    assert find_cuts(np.stack([blocks[:, 8 * step : 8 * step + 56] for step in range(20)])) == []
    flash = film((BLACK, 13))
    flash[6] = 255
    assert find_cuts(flash) == []
    fade = np.linspace(0, 255, 20).astype(np.uint8)
    assert find_cuts(np.broadcast_to(fade[:, None, None, None], (20, 16, 24, 3))) == []


def test_the_first_of_equal_scenes_is_taken_and_few_frames_are_accepted():
    pixels = film((WHITE, 4), (BLACK, 4))
    assert np.array_equal(longest_scene(pixels), pixels[:4])
    assert find_cuts(pixels[:1]) == []
    assert find_cuts(pixels[3:5]) == [1]

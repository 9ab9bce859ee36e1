import numpy as np
import pytest

from magicvideo.data.backgrounds import COLOURS, nearest_colour
from magicvideo.data.sources.synthetic import (
    DIRECTIONS,
    FPS,
    FRAMES,
    SIZE,
    all_scenes,
    render_frame,
    write_clips,
)
from magicvideo.errors import UserError
from magicvideo.media.video_reader import read_clip


def test_all_synthetic_scenes_are_different_and_visible():
    scenes = all_scenes()
    assert len({scene.caption for scene in scenes}) == len(scenes) == 400
    assert all(scene.colour != scene.background for scene in scenes)


def centre(pixels, colour):
    """Return the mean place (column, row) of the pixels that are nearest to a colour."""
    table = np.array(list(COLOURS.values()))
    nearest = ((pixels[..., None, :].astype(int) - table) ** 2).sum(-1).argmin(-1)
    rows, columns = np.nonzero(nearest == list(COLOURS).index(colour))
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("number", range(0, 400, 29))
def test_the_caption_describes_the_scene(number):
    scene = all_scenes()[number]
    first, middle, last = (render_frame(scene, time) for time in (0.0, 0.5, 1.0))
    assert nearest_colour(middle[SIZE // 2, SIZE // 2]) == scene.colour
    assert nearest_colour(first[0, 0]) == scene.background
    moved = centre(last, scene.colour) - centre(first, scene.colour)
    assert moved / SIZE == pytest.approx(np.multiply(DIRECTIONS[scene.direction], 0.5), abs=0.02)


def test_shapes_differ_and_are_those_named():
    def area(shape):
        (scene,) = [
            scene
            for scene in all_scenes()
            if (scene.shape, scene.colour, scene.direction, scene.background)
            == (shape, "red", "up", "white")
        ]
        green = render_frame(scene, 0.5)[..., 1].astype(int)
        return ((255 - green) / (255 - COLOURS["red"][1])).mean()

    radius = 0.16
    assert area("circle") == pytest.approx(np.pi * radius**2, rel=0.05)
    assert area("square") == pytest.approx((2 * 0.85 * radius) ** 2, rel=0.05)
    assert area("triangle") == pytest.approx(0.95 * 1.8 * radius**2, rel=0.05)
    assert area("diamond") == pytest.approx(2 * 0.75 * 1.1 * radius**2, rel=0.05)


def test_clips_are_videos_of_their_scenes(tmp_path):
    scenes = write_clips(tmp_path / "new", 3)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        f"clip00{number}.{suffix}" for number in range(3) for suffix in ("mp4", "txt")
    ]
    for number, scene in enumerate(scenes):
        path = tmp_path / f"new/clip00{number}.mp4"
        decoded = read_clip(path, SIZE)
        assert (len(decoded.pixels), decoded.fps) == (FRAMES, FPS)
        difference = decoded.pixels[10].astype(int) - render_frame(scene, 10 / (FRAMES - 1))
        assert np.abs(difference).mean() < 6  # what H.264 with halved colour leaves
        assert path.with_suffix(".txt").read_text() == scene.caption + "\n"


def test_the_same_call_writes_the_same_bytes(tmp_path, shapes):
    write_clips(tmp_path / "again", 2)
    for name in ("clip000.mp4", "clip001.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (shapes / name).read_bytes()


@pytest.mark.parametrize("count", [0, -1, 401])
def test_impossible_counts_are_refused(tmp_path, count):
    with pytest.raises(UserError, match="ask for 1 to 400"):
        write_clips(tmp_path / "new", count)


def test_nothing_is_written_into_a_folder_with_other_files(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        write_clips(tmp_path, 1)

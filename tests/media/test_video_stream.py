from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from magicvideo.errors import UserError
from magicvideo.media.video_io import (
    VideoStream,
    open_video_stream,
    to_uint8,
    write_pixels,
    write_video_stream,
)


def bytes_of(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


@pytest.fixture
def square(moving_square):
    return VideoStream(iter(moving_square), 5, 18, 26, 12.5)


def test_files_are_read_at_their_own_size(tmp_path, square, moving_square):
    write_video_stream(square, tmp_path / "a.mp4")
    stream = open_video_stream(tmp_path / "a.mp4")
    assert stream.fps == pytest.approx(12.5)
    assert (stream.num_frames, stream.height, stream.width) == (5, 18, 26)
    frames = torch.stack(list(stream.frames))
    assert frames.shape == (5, 3, 18, 26)
    assert (frames - moving_square).abs().mean() < 0.05


def test_transparent_images_are_composited_on_white(tmp_path):
    clear = Image.new("RGBA", (6, 4), (200, 0, 0, 0))
    solid = Image.new("RGBA", (6, 4), (200, 0, 0, 255))
    path = tmp_path / "a.webp"
    clear.save(path, save_all=True, append_images=[solid], duration=100, lossless=True)
    stream = open_video_stream(path)
    first, second = stream.frames
    assert stream.fps == 10
    assert (first == 1).all()
    assert np.allclose((second[:, 0, 0] + 1) * 127.5, [200, 0, 0], atol=1e-3)


def test_files_that_are_not_videos_are_named(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"a\.mp4 cannot be used"):
        open_video_stream(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="cannot be read"):
        open_video_stream(tmp_path / "b.mp4")


def test_damage_is_detected_before_and_during_the_work(tmp_path, square):
    path = tmp_path / "a.webm"
    write_video_stream(square, path)
    stream, whole = open_video_stream(path), path.read_bytes()
    path.write_bytes(whole[:-90])
    with pytest.raises(UserError, match=r"a\.webm cannot be used: cut off"):
        open_video_stream(path)
    with pytest.raises(UserError, match=r"a\.webm cannot be used: cut off"):
        list(stream.frames)


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.webp", "x.gif", "x"])
def test_streaming_and_whole_videos_give_the_same_bytes(tmp_path, square, moving_square, name):
    one, two = tmp_path / "one" / name, tmp_path / "two" / name
    one.parent.mkdir()
    two.parent.mkdir()
    told = []
    write_video_stream(square, one, progress=lambda *event: told.append(event))
    write_pixels(to_uint8(moving_square), 12.5, "", two)
    assert bytes_of(one) == bytes_of(two)
    assert told == [("writing", done, 5) for done in range(1, 6)]


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.webp", "x"])
def test_only_gif_keeps_frames_in_memory(tmp_path, square, moving_square, name):
    handed, written = [], []

    def frames():
        for frame in moving_square:
            assert len(handed) == len(written)  # all before are done with
            handed.append(frame)
            yield frame

    stream = replace(square, frames=frames())
    write_video_stream(stream, tmp_path / name, progress=lambda *event: written.append(event))
    assert len(written) == 5


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.webp", "x.gif", "x"])
def test_an_interruption_keeps_the_existing_file(tmp_path, square, moving_square, name):
    target = tmp_path / name
    write_video_stream(square, target)

    def interrupted():
        yield from moving_square[:3]
        raise KeyboardInterrupt

    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(KeyboardInterrupt):
        write_video_stream(replace(square, frames=interrupted()), target, overwrite=True)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("x.mp4", {"width": 27}, "Frames of 27x18 have an odd side"),
        ("x.webm", {"height": 17}, "Frames of 26x17 have an odd side"),
        ("x.gif", {"num_frames": 10**6}, "1000000 frames of 26x18 in memory at once, more than"),
        ("x.gif", {"num_frames": 10**6}, "write .mp4, .webm, .webp or PNG frames"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_any_work(
    tmp_path, square, name, changes, sentence
):
    with pytest.raises(UserError, match=sentence):
        write_video_stream(replace(square, **changes), tmp_path / name)
    assert len(list(square.frames)) == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 1, 16), (256, 256, 16), (240, 320, 13), (512, 512, 4), (720, 1280, 1), (4000, 4000, 1)],
)
def test_batches_of_large_frames_are_smaller(square, height, width, expected):
    stream = replace(square, height=height, width=width)
    assert stream.frames_per_batch(16) == expected


def test_batches_contain_all_frames(square, moving_square):
    parts = list(square.batches(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat(parts), moving_square)

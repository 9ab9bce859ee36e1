from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Colorspace
from PIL import Image, ImageSequence

from magicvideo.errors import UserError
from magicvideo.generate.read import read_request
from magicvideo.generate.request import Picture
from magicvideo.generate.write import to_pixels, write_video

OUTPUTS = ["x.mp4", "x.webm", "x.webp", "x.gif", "x"]


def bytes_of(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_format_gives_the_request_back(tmp_path, moving_square, request_of, name):
    long = Picture.of("a.png", np.random.default_rng(0).standard_normal(768).astype(np.float32))
    request = request_of(picture=long)
    write_video(moving_square, request, tmp_path / name)
    assert read_request(tmp_path / name) == request


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_video_gives_the_same_bytes(tmp_path, moving_square, request_of, name):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_video(moving_square, request_of(), tmp_path / folder / name)
    assert bytes_of(tmp_path / "one" / name) == bytes_of(tmp_path / "two" / name)


@pytest.mark.parametrize("name", ["x.mp4", "x.webm"])
def test_containers_hold_what_browsers_play(tmp_path, moving_square, request_of, name):
    write_video(moving_square, request_of(fps=7.5), tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(15, 2)
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == Colorspace.ITU709
        frames = [
            frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU709).to_ndarray()
            for frame in container.decode(video=0)
        ]
    shown, expected = np.stack(frames), to_pixels(moving_square, 2)
    assert shown.shape == expected.shape == (5, 36, 52, 3)
    # far from edges only the codec's rounding is left
    assert np.abs(shown[:, 30:, 30:].astype(int) - expected[:, 30:, 30:]).max() <= 6
    assert np.abs(shown.astype(int) - expected).mean() < 6


def test_the_index_of_an_mp4_comes_first(tmp_path, moving_square, request_of):
    write_video(moving_square, request_of(), tmp_path / "x.mp4")
    content = (tmp_path / "x.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


@pytest.mark.parametrize(("name", "tolerance"), [("x.gif", 3), ("x.webp", 12)])
def test_animations_loop_and_keep_time_and_colours(
    tmp_path, moving_square, request_of, name, tolerance
):
    write_video(moving_square, request_of(fps=7.0, enlarge=1), tmp_path / name)
    with Image.open(tmp_path / name) as animation:
        assert animation.info["loop"] == 0
        frames, durations = [], []
        for frame in ImageSequence.Iterator(animation):
            frames.append(np.asarray(frame.convert("RGB")).astype(int))
            durations.append(frame.info["duration"])
    assert len(frames) == 5
    assert sum(durations) == pytest.approx(5000 / 7, abs=6)
    background = np.stack(frames)[:, 14:, :]
    assert np.abs(background - (30, 60, 200)).max() <= tolerance
    assert np.ptp(background, axis=0).max() <= tolerance


def test_a_plain_background_stands_still_in_a_gif_of_many_colours(tmp_path, request_of):
    frames = torch.full((5, 3, 18, 26), 0.37)
    frames[:, :, :, :11] = torch.rand(5, 3, 18, 11) * 2 - 1
    write_video(frames, request_of(enlarge=1), tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as animation:
        shown = [np.asarray(f.convert("RGB"))[:, 11:] for f in ImageSequence.Iterator(animation)]
    assert np.ptp(np.stack(shown), axis=(0, 1, 2)).max() == 0
    assert np.abs(shown[0].astype(int) - round(1.37 * 127.5)).max() <= 8


def test_png_frames_are_exact(tmp_path, moving_square, request_of):
    write_video(moving_square, request_of(enlarge=1), tmp_path / "x")
    files = sorted((tmp_path / "x").iterdir())
    assert [file.name for file in files] == [f"{index:03}.png" for index in range(5)]
    for file, expected in zip(files, to_pixels(moving_square), strict=True):
        with Image.open(file) as frame:
            np.testing.assert_array_equal(np.asarray(frame), expected)


def test_pixels_are_rounded_and_clamped():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 1.5]).view(5, 1, 1, 1).expand(5, 3, 2, 7)
    assert to_pixels(values)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_enlargement_keeps_plain_areas_and_the_place_of_things(moving_square):
    small, large = to_pixels(moving_square), to_pixels(moving_square, 3)
    assert large.shape == (5, 54, 78, 3)
    assert (large[:, 45:] == (30, 60, 200)).all()
    averaged = large.reshape(5, 18, 3, 26, 3, 3).mean(axis=(2, 4))
    assert np.abs(averaged - small).mean() < 2


@pytest.mark.parametrize("name", OUTPUTS)
def test_one_frame_is_a_video_too(tmp_path, moving_square, request_of, name):
    write_video(moving_square[:1], request_of(num_frames=1), tmp_path / name)
    assert read_request(tmp_path / name).num_frames == 1


def test_odd_sides_are_refused_where_the_codec_has_none(tmp_path, moving_square, request_of):
    odd = moving_square[..., :17]
    with pytest.raises(UserError, match="Frames of 17x18 have an odd side"):
        write_video(odd, request_of(enlarge=1), tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []
    write_video(odd, request_of(enlarge=1), tmp_path / "x.gif")


def test_files_without_a_request_are_refused(tmp_path, write_video):
    Image.new("RGB", (3, 5)).save(tmp_path / "plain.gif")
    (tmp_path / "text.webp").write_text("not a picture")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    write_video(tmp_path / "plain.mp4", np.zeros((3, 16, 32, 3), np.uint8))
    for name, sentence in {
        "plain.gif": "does not say how it was made",
        "plain.mp4": "does not say how it was made",
        "text.webp": "cannot be read as a video",
        "text.mp4": "cannot be read as a video",
        "none.mp4": "does not exist",
        "empty": "000.png does not exist",
    }.items():
        with pytest.raises(UserError, match=sentence):
            read_request(tmp_path / name)

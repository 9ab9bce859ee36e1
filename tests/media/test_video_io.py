import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Colorspace
from einops import rearrange
from PIL import Image, ImageSequence

from magicvideo.errors import UserError
from magicvideo.media.video_io import read_text, to_uint8, write_pixels
from magicvideo.media.video_reader import probe_video

OUTPUTS = ["x.mp4", "x.webm", "x.webp", "x.gif", "x"]


def shown(path):
    """Frames of an animation as integers `f h w 3`, and their durations in milliseconds."""
    with Image.open(path) as animation:
        pairs = [
            (np.asarray(frame.convert("RGB")).astype(int), frame.info["duration"])
            for frame in ImageSequence.Iterator(animation)
        ]
    frames, durations = zip(*pairs, strict=True)
    return np.stack(frames), durations


def write(frames, path, *, fps=7.0, enlarge=1, text=""):
    write_pixels(to_uint8(frames, enlarge), fps, text, path)


def bytes_of(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_format_stores_the_text(tmp_path, moving_square, name):
    text = json.dumps({"prompt": "a cät\nsays \"hi\"; it's 'fine' \\ = # 猫", "long": "x" * 4000})
    write(moving_square, tmp_path / name, text=text)
    assert read_text(tmp_path / name) == text


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_video_gives_the_same_bytes(tmp_path, moving_square, name):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(moving_square, tmp_path / folder / name, enlarge=2)
    assert bytes_of(tmp_path / "one" / name) == bytes_of(tmp_path / "two" / name)


@pytest.mark.parametrize("name", ["x.mp4", "x.webm"])
def test_containers_use_codecs_that_browsers_play(tmp_path, moving_square, name):
    write(moving_square, tmp_path / name, fps=7.5, enlarge=2)
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(15, 2)
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == Colorspace.ITU709
        frames = [
            frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU709).to_ndarray()
            for frame in container.decode(video=0)
        ]
    shown, expected = np.stack(frames), to_uint8(moving_square, 2)
    assert shown.shape == expected.shape == (5, 36, 52, 3)
    # far from edges only the codec's rounding is left
    assert np.abs(shown[:, 30:, 30:].astype(int) - expected[:, 30:, 30:]).max() <= 6
    assert np.abs(shown.astype(int) - expected).mean() < 6


def test_the_index_of_an_mp4_comes_first(tmp_path, moving_square):
    write(moving_square, tmp_path / "x.mp4", enlarge=2)
    content = (tmp_path / "x.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


@pytest.mark.parametrize(("name", "tolerance"), [("x.gif", 3), ("x.webp", 12)])
def test_animations_loop_and_keep_timing_and_colours(tmp_path, moving_square, name, tolerance):
    write(moving_square, tmp_path / name)
    with Image.open(tmp_path / name) as animation:
        assert animation.info["loop"] == 0
    frames, durations = shown(tmp_path / name)
    assert len(frames) == 5
    assert sum(durations) == pytest.approx(5000 / 7, abs=6)
    background = frames[:, 16:]  # WebP codes 16 rows at a time
    assert np.abs(background - (30, 60, 200)).max() <= tolerance
    assert np.ptp(background, axis=0).max() <= tolerance


def test_a_plain_background_does_not_flicker_in_a_gif_of_many_colours(tmp_path):
    frames = torch.full((5, 3, 18, 26), 0.37)
    frames[:, :, :, :11] = torch.rand(5, 3, 18, 11) * 2 - 1
    write(frames, tmp_path / "x.gif")
    plain = shown(tmp_path / "x.gif")[0][:, :, 11:]
    assert np.ptp(plain, axis=(0, 1, 2)).max() == 0
    assert np.abs(plain[0] - round(1.37 * 127.5)).max() <= 8


@pytest.mark.parametrize(("name", "unit"), [("x.gif", 10), ("x.webp", 1)])
def test_equal_and_similar_frames_are_not_merged(tmp_path, moving_square, name, unit):
    stops = moving_square[[0, 0, 0, 1, 1, 2, 3, 3]]
    stops[4] += 2 / 255  # a level: less than the coding changes
    write(stops, tmp_path / name, fps=24.0)
    frames, durations = shown(tmp_path / name)
    assert len(frames) == 8
    assert np.ptp(frames[:3], axis=0).max() == np.ptp(frames[6:], axis=0).max() == 0
    assert np.abs(frames[5:7] - frames[4:6]).max() > 100
    assert np.abs(np.subtract(durations, 1000 / 24)).max() < unit


def test_gif_delays_are_not_shorter_than_players_support(tmp_path, moving_square):
    frames = to_uint8(moving_square[[0, 1, 2, 3, 4, 0, 1, 2]])
    for fps, kept in ((50, 8), (100, 4), (120, 4), (33, 8)):
        write_pixels(frames, float(fps), "", tmp_path / f"{fps}.gif")
        pictures, durations = shown(tmp_path / f"{fps}.gif")
        assert len(pictures) == kept
        assert min(durations) >= 20
        assert abs(sum(durations) - 8000 / fps) < 15  # it is no longer and no shorter
    every_second = shown(tmp_path / "100.gif")[0]
    assert np.array_equal(every_second, shown(tmp_path / "50.gif")[0][::2])


def clip_of(background):
    """A square of 16 pixels over frames `f h w 3` of a background, 2 pixels a frame."""
    for index, frame in enumerate(background):
        frame[30:46, 2 * index : 2 * index + 16] = (230, 40, 20)
    return rearrange(torch.from_numpy(background).float() / 127.5 - 1, "f h w c -> f c h w")


def test_a_webp_does_not_pulse(tmp_path):
    slope = np.linspace(20, 220, 64 * 96).reshape(64, 96, 1).repeat(3, axis=2).astype(np.uint8)
    clip = clip_of(np.stack([slope] * 21))
    write(clip, tmp_path / "x.webp")
    frames, _ = shown(tmp_path / "x.webp")
    assert np.ptp(frames[:, :16], axis=0).max() == 0  # above the square nothing is coded anew
    changes = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert changes.max() < 1.5 * np.median(changes)
    assert np.abs(frames - to_uint8(clip)).mean() < 2


def test_a_webp_keeps_slow_changes(tmp_path):
    grey = np.arange(60, 91, dtype=np.uint8)  # a level a frame
    clip = clip_of(np.broadcast_to(grey[:, None, None, None], (31, 64, 96, 3)).copy())
    write(clip, tmp_path / "x.webp")
    frames, _ = shown(tmp_path / "x.webp")
    assert np.abs(frames[:, :16].mean(axis=(1, 2, 3)) - grey).max() < 4.5


def test_png_frames_are_exact(tmp_path, moving_square):
    write(moving_square, tmp_path / "x")
    files = sorted((tmp_path / "x").iterdir())
    assert [file.name for file in files] == [f"{index:03}.png" for index in range(5)]
    for file, expected in zip(files, to_uint8(moving_square), strict=True):
        with Image.open(file) as frame:
            np.testing.assert_array_equal(np.asarray(frame), expected)


def test_pixels_are_rounded_and_clamped():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 1.5]).view(5, 1, 1, 1).expand(5, 3, 2, 7)
    assert to_uint8(values)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_upscaling_keeps_plain_areas_and_positions(moving_square):
    small, large = to_uint8(moving_square), to_uint8(moving_square, 3)
    assert large.shape == (5, 54, 78, 3)
    assert (large[:, 45:] == (30, 60, 200)).all()
    averaged = large.reshape(5, 18, 3, 26, 3, 3).mean(axis=(2, 4))
    assert np.abs(averaged - small).mean() < 2


@pytest.mark.parametrize("name", OUTPUTS)
def test_one_frame_is_a_video_too(tmp_path, moving_square, name):
    write(moving_square[:1], tmp_path / name, enlarge=2)
    assert len(bytes_of(tmp_path / name)) == 1


def test_odd_sides_are_refused_where_the_codec_has_none(tmp_path, moving_square):
    odd = moving_square[..., :17]
    with pytest.raises(UserError, match="Frames of 17x18 have an odd side"):
        write(odd, tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []
    write(odd, tmp_path / "x.gif")


def test_files_without_metadata_and_unreadable_files_are_distinguished(tmp_path, write_video):
    Image.new("RGB", (3, 5)).save(tmp_path / "plain.gif")
    write_video(tmp_path / "plain.mp4", np.zeros((3, 16, 32, 3), np.uint8))
    for name in ("plain.gif", "plain.mp4"):
        assert read_text(tmp_path / name) is None
    (tmp_path / "text.webp").write_text("not a picture")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    for name, sentence in {
        "text.webp": "cannot be read as a video",
        "text.mp4": "cannot be read as a video",
        "none.mp4": "does not exist",
        "empty": "000.png does not exist",
    }.items():
        with pytest.raises(UserError, match=sentence):
            read_text(tmp_path / name)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_frames_are_never_written(tmp_path, moving_square, name, bad):
    frames = moving_square.clone()
    frames[2, 1, 3, 4] = bad
    with pytest.raises(UserError, match=r"The frames hold 1 of 7,020 numbers that are not finite"):
        write(frames, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_names_with_colons_are_files(tmp_path, moving_square, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "concat:x.webm", "file:y.mp4"):
        write(moving_square, Path(name), text="made")
        assert read_text(Path(name)) == "made"
        assert probe_video(Path(name)).num_frames == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "12:30.mp4",
        "concat:x.webm",
        "file:y.mp4",
    ]


def test_an_output_that_appeared_meanwhile_is_not_replaced(tmp_path, moving_square):
    target = tmp_path / "x.webp"

    def frames():
        yield from to_uint8(moving_square)
        target.write_bytes(b"of another program")

    with pytest.raises(UserError, match=r"x\.webp exists"):
        write_pixels(frames(), 7.0, "", target)
    assert target.read_bytes() == b"of another program"
    assert [path.name for path in tmp_path.iterdir()] == ["x.webp"]

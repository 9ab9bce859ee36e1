"""A file is read by its content, whatever its name."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from magicvideo.errors import ClipError
from magicvideo.media.video_reader import iter_frames, probe_video, read_clip

COLOURS = [(240, 16, 16), (16, 240, 16), (16, 16, 240)]
FRAMES = np.stack([np.full((32, 48, 3), colour, np.uint8) for colour in COLOURS])


def animation(path, kind, duration=200, **options):
    first, *others = map(Image.fromarray, FRAMES)
    first.save(
        path, kind, save_all=True, append_images=others, duration=duration, lossless=True, **options
    )
    return path


@pytest.mark.parametrize(
    ("written", "codec", "named"),
    [("a.mp4", "libx264", "b.gif"), ("a.mp4", "libx264", "b.mkv"), ("a.mkv", "libx264", "b.webp")],
)
def test_videos_of_any_name(tmp_path, write_video, written, codec, named):
    write_video(tmp_path / written, FRAMES, 5, codec).rename(tmp_path / named)
    frames = list(iter_frames(tmp_path / named))
    assert np.abs(np.stack(frames) - FRAMES.astype(int)).max() < 8
    assert probe_video(tmp_path / named).fps == 5


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.apng"])
def test_animations_of_any_name(tmp_path, kind, name):
    clip = read_clip(animation(tmp_path / name, kind), 16)
    assert clip.fps == 5
    assert np.abs(clip.pixels[:, 8, 8, :3] - np.array(COLOURS)).max() < 8


def test_the_still_of_an_animated_png_is_no_frame(tmp_path):
    white = Image.new("RGB", (48, 32), "white")
    frames = list(map(Image.fromarray, FRAMES))
    white.save(
        tmp_path / "a.png", save_all=True, append_images=frames, duration=200, default_image=True
    )
    clip = read_clip(tmp_path / "a.png", 16)
    assert [tuple(frame[8, 8, :3]) for frame in clip.pixels] == COLOURS


def test_the_profile_of_an_animation_is_applied(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    plain = read_clip(animation(tmp_path / "a.webp", "WEBP"), 16).pixels
    same = animation(tmp_path / "b.webp", "WEBP", icc_profile=lab.tobytes())
    assert np.abs(read_clip(same, 16).pixels.astype(int) - plain).max() <= 1
    swapped = lab.tobytes().replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ")
    swapped = swapped.replace(b"tXYZ", b"bXYZ")  # red is blue
    other = animation(tmp_path / "c.webp", "WEBP", icc_profile=swapped)
    found = read_clip(other, 16).pixels[:, 8, 8]
    assert found[0].argmax() == 2
    assert found[2].argmax() == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "a list of other files"),
        (b"ffconcat version 1.0\nfile b.mp4\n", "a list of other files"),
        (b"\xff\xd8\xff\xe0 JFIF", "a still picture"),
    ],
)
def test_what_lies_under_the_name_of_a_video_is_said(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ClipError, match=reason):
        probe_video(path)


def test_a_picture_under_the_name_of_a_video_is_a_still(tmp_path):
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.mp4", "PNG")
    with pytest.raises(ClipError, match="a still picture"):
        probe_video(tmp_path / "a.mp4")

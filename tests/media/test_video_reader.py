from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from magicvideo.errors import ClipError
from magicvideo.media.video_reader import read_clip

FRAMES, HEIGHT, WIDTH = 11, 48, 80


@pytest.fixture(scope="module")
def frames():
    """Frame k has the brightness 20 k; the left, middle and right third differ in colour."""
    pixels = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    pixels[...] = 20 * np.arange(FRAMES)[:, None, None, None]
    pixels[:, :, :16] = (255, 0, 0)  # outside the centre square
    pixels[:, :8] = (0, 0, 255)  # along the top
    return pixels


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".mp4", "libx264"),
        (".MOV", "libx264"),
        (".mkv", "libx264"),
        (".webm", "libvpx-vp9"),
        (".avi", "mpeg4"),
    ],
)
def test_every_container_gives_the_centre_square(tmp_path, frames, write_video, suffix, codec):
    path = write_video(tmp_path / f"clip{suffix}", frames, Fraction(30), codec)
    decoded = read_clip(path, 12)
    assert decoded.pixels.shape == (FRAMES, 12, 12, 3)
    assert decoded.fps == pytest.approx(30)
    middle = decoded.pixels[:, 6, 6].astype(int)
    assert np.abs(middle - 20 * np.arange(FRAMES)[:, None]).max() < 12
    top, left = decoded.pixels[5, 0, 6].astype(int), decoded.pixels[5, 8, 0].astype(int)
    assert top[2] > 180
    assert top[0] < 60
    assert left[0] - left[2] < 40  # the red is cut away


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_transparent_pictures_are_premultiplied(tmp_path, suffix):
    pixels = np.zeros((FRAMES, 32, 32, 4), np.uint8)
    pixels[:, 9:23, 9:23] = (200, 100, 40, 255)  # cells of 2 x 2 are half covered
    pixels[:, 9:23, 16:20, 0] = 10 * np.arange(FRAMES)[:, None, None]
    pictures = [Image.fromarray(frame) for frame in pixels]
    path = tmp_path / f"clip{suffix}"
    how = {"lossless": True} if suffix == ".webp" else {"disposal": 2}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50, **how)
    decoded = read_clip(path, 16)
    assert decoded.fps == pytest.approx(20)
    alpha = pixels[..., 3:] / 255
    shrunk = (pixels[..., :3] * alpha).reshape(FRAMES, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(decoded.pixels[..., :3], shrunk, atol=1)
    covered = alpha.reshape(FRAMES, 16, 2, 16, 2).mean(axis=(2, 4)) * 255
    np.testing.assert_allclose(decoded.pixels[..., 3], covered, atol=1)
    assert (decoded.pixels[..., :3] <= decoded.pixels[..., 3:]).all()


def test_opaque_pictures_have_no_alpha(tmp_path, frames):
    pictures = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / "clip.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    decoded = read_clip(path, 24)
    assert decoded.pixels.shape == (FRAMES, 24, 24, 3)
    assert (decoded.pixels[4, 12, 12] == 80).all()


def test_small_pictures_are_enlarged(tmp_path, frames, write_video):
    path = write_video(tmp_path / "clip.mp4", frames)
    assert read_clip(path, 96).pixels.shape == (FRAMES, 96, 96, 3)


def test_rotated_phone_videos_are_shown_upright(tmp_path, write_video):
    pixels = np.zeros((5, 32, 32, 3), np.uint8)
    pixels[:, :, :16] = 255  # bright on the left
    path = write_video(tmp_path / "clip.mp4", pixels)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    # a quarter turn clockwise, as a phone held upright writes it: bright at the top
    turned = (0, one, 0, -one & 0xFFFFFFFF, 0, 0, 32 * one, 0, 1 << 30)
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big") for value in turned)
    path.write_bytes(content)
    shown = read_clip(path, 8).pixels[2, ..., 0]
    assert shown[:3].min() > 200
    assert shown[5:].max() < 50


def test_a_wrong_number_of_frames_is_detected(tmp_path, frames, write_video):
    path = write_video(tmp_path / "clip.mp4", frames)
    assert len(read_clip(path, 8, expected_frames=FRAMES).pixels) == FRAMES
    with pytest.raises(ClipError, match="has 11 frames instead of 12"):
        read_clip(path, 8, expected_frames=12)


@pytest.fixture(scope="module")
def levels():
    """Five seconds at a rate of 6; frame k has the brightness 8 k."""
    level = 8 * np.arange(30, dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(level[:, None, None, None], (30, 16, 24, 3)))


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mp4", "libx264"), (".mkv", "libx264"), (".webm", "libvpx-vp9"), (".avi", "mpeg4")],
)
@pytest.mark.parametrize(
    ("span", "first", "count"),
    [((0.0, 0.6), 0, 4), ((1.0, 2.25), 6, 8), ((3.3, 3.7), 20, 3), ((4.1, 5.0), 25, 5)],
)
def test_a_time_range_is_exact_to_the_frame(
    tmp_path, levels, write_video, suffix, codec, span, first, count
):
    path = write_video(tmp_path / f"clip{suffix}", levels, Fraction(6), codec)
    decoded = read_clip(path, 8, time_range=span)
    assert decoded.fps == pytest.approx(6)
    assert decoded.pixels.shape == (count, 8, 8, 3)
    expected = 8 * np.arange(first, first + count)
    assert abs(np.median(decoded.pixels.mean(axis=(1, 2, 3)) - expected)) < 4


def test_only_damage_after_its_key_frame_affects_a_time_range(tmp_path, write_video):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, 16, 24, 3), np.uint8).repeat(30, 0)
    pixels[:, :8, :8] = 8 * np.arange(30, dtype=np.uint8)[:, None, None, None]
    path = write_video(tmp_path / "clip.avi", pixels, Fraction(6), "mpeg4")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [place for place in range(30) if packets[place].is_keyframe] == [0, 12, 24]
        start, size = packets[5].pos + 8, packets[5].size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    assert len(read_clip(path, 8, time_range=(2.0, 3.0)).pixels) == 6
    for span in ((0.5, 1.0), (1.3, 1.8)):
        with pytest.raises(ClipError, match="1 frames are damaged"):
            read_clip(path, 8, time_range=span)


def test_time_ranges_beyond_a_file_are_refused(tmp_path, levels, write_video):
    path = write_video(tmp_path / "clip.mp4", levels, 6, movflags="faststart")
    assert len(read_clip(path, 8, time_range=(4.5, 5.2)).pixels) == 3  # off by a rounded list
    with pytest.raises(ClipError, match=r"ends at 5\.3 seconds, and the video at 5\.00"):
        read_clip(path, 8, time_range=(4.5, 5.3))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ClipError, match=r"damaged|cut off"):
        read_clip(path, 8, time_range=(4.0, 5.0))


def test_images_have_no_time_ranges(tmp_path, frames):
    pictures = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / "clip.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    with pytest.raises(ClipError, match="no part can be taken"):
        read_clip(path, 8, time_range=(0.0, 0.2))


def test_a_long_film_may_be_cut(tmp_path, write_video, monkeypatch):
    monkeypatch.setattr("magicvideo.media.video_reader.MAX_CLIP_FRAMES", 30)
    level = np.zeros((40, 16, 16, 3), np.uint8)
    path = write_video(tmp_path / "clip.mp4", level, 10)
    with pytest.raises(ClipError, match="more than 30 frames"):
        read_clip(path, 8)
    with pytest.raises(ClipError, match="more than 30 frames"):
        read_clip(path, 8, time_range=(0.0, 3.5))
    assert len(read_clip(path, 8, time_range=(1.0, 3.5)).pixels) == 25

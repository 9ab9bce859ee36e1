import numpy as np
import pytest
from PIL import Image

from magicvideo.errors import ClipError
from magicvideo.media import video_reader
from magicvideo.media.video_reader import iter_frames, probe_video, read_clip_native

FRAMES, HEIGHT, WIDTH = 11, 16, 24


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (FRAMES, HEIGHT // 4, WIDTH // 4, 3), np.uint8)
        .repeat(4, 1)
        .repeat(4, 2)
    )


@pytest.fixture(params=["clip.mp4", "clip.mkv", "clip.gif", "clip.webp"])
def path(request, frames, tmp_path, write_video):
    path = tmp_path / request.param
    if path.suffix in video_reader.VIDEO_SUFFIXES:
        return write_video(path, frames, 12)
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[50, 30] * 5 + [50])
    return path


def test_a_stream_has_the_frames_of_the_whole(path):
    whole = read_clip_native(path)
    found = probe_video(path)
    assert (found.num_frames, found.height, found.width) == whole.pixels.shape[:3]
    assert found.fps == whole.fps
    streamed = np.stack(list(iter_frames(path)))
    np.testing.assert_array_equal(streamed[..., :3], whole.pixels)
    assert (streamed[..., 3:] == 255).all()


def test_a_stream_has_no_maximum_length(path, monkeypatch):
    monkeypatch.setattr(video_reader, "MAX_CLIP_FRAMES", FRAMES - 1)
    monkeypatch.setattr(video_reader, "MAX_CLIP_BYTES", 1)
    with pytest.raises(ClipError, match="more than"):
        read_clip_native(path)
    assert probe_video(path).num_frames == len(list(iter_frames(path))) == FRAMES


def test_frames_are_decoded_on_demand(frames, tmp_path, write_video):
    path = write_video(tmp_path / "clip.avi", frames, 12, "mpeg4")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ClipError, match=r"damaged|cut off"):
        probe_video(path)
    stream = iter_frames(path)
    assert next(stream).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ClipError, match=r"damaged|cut off"):
        list(stream)


def test_stills_and_changing_sizes_are_refused(frames, tmp_path, write_video):
    Image.fromarray(frames[0]).save(tmp_path / "still.gif")
    with pytest.raises(ClipError, match="a still picture"):
        probe_video(tmp_path / "still.gif")
    parts = [
        write_video(tmp_path / f"{n}.ts", frames[:, :, : WIDTH // n], 12, "mpeg2video")
        for n in (1, 2)
    ]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ClipError, match="frames of different sizes"):
        probe_video(both)

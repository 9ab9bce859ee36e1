"""Timing, missing ends and streams in files of other programs."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from magicvideo.errors import ClipError
from magicvideo.media.video_reader import probe_video, read_clip


def write_at(path, times, codec, unit=Fraction(1, 1000), pix_fmt="yuv420p", rate=30):
    """Write grey frames of brightness 2 k that are shown at some times, in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = unit
        for number, time in enumerate(times):
            pixels = np.full((32, 32, 3), 2 * number % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


RECORDING = [k / 30 for k in range(60)] + [2 + k / 2 for k in range(30)]
SLIDES = [2.5 * k for k in range(8)]


@pytest.mark.parametrize("times", [RECORDING, SLIDES], ids=["recording", "slides"])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.webm", "libvpx"), ("a.mkv", "libx264"), ("a.mp4", "libx264"), ("a.ts", "libx264")],
)
def test_variable_frame_rates_become_their_mean(tmp_path, times, name, codec):
    path = write_at(tmp_path / name, times, codec)
    mean = (len(times) - 1) / (times[-1] - times[0])
    assert probe_video(path).fps == pytest.approx(mean, rel=0.01)
    assert read_clip(path, 16).fps == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize(
    "rate", [Fraction(30000, 1001), Fraction(24), Fraction(25), Fraction(15, 2)]
)
@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.mp4"])
def test_steady_rates_are_exact_although_times_are_rounded(tmp_path, write_video, rate, name):
    frames = np.zeros((11, 16, 16, 3), np.uint8)
    path = write_video(tmp_path / name, frames, rate, "libvpx" if "webm" in name else "libx264")
    assert probe_video(path).fps == float(rate)


@pytest.mark.parametrize("places", [(0, 1, 2, 5, 6, 9), (0, 1, 2, 3, 4)])
def test_null_frames_of_avi_count_as_time(tmp_path, places):
    times = [place / 10 for place in places]
    path = write_at(tmp_path / "a.avi", times, "mjpeg", Fraction(1, 10), "yuvj420p", 10)
    clip = read_clip(path, 32)
    assert len(clip.pixels) == len(places)
    assert clip.fps == pytest.approx((len(places) - 1) / times[-1])


def test_avi_with_b_frames_is_whole(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "b-adapt": "0"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    found = probe_video(tmp_path / "a.avi")
    assert found.num_frames == 20
    assert found.fps == 25


@pytest.mark.parametrize("key_distance", [10, 40])
def test_only_the_part_in_the_edit_list_is_read(tmp_path, key_distance):
    path = tmp_path / "a.mp4"
    options = {"g": str(key_distance), "bf": "0", "crf": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for k in range(120):
            pixels = np.full((32, 32, 3), 2 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())

    def scale(box):
        place = content.index(box) + 16
        return struct.unpack(">I", content[place : place + 4])[0]

    place = content.index(b"elst") + 12
    start = struct.unpack(">i", content[place + 4 : place + 8])[0]
    content[place : place + 8] = struct.pack(">Ii", scale(b"mvhd"), scale(b"mdhd") + start)
    path.write_bytes(content)
    clip = read_clip(path, 32)
    assert len(clip.pixels) == pytest.approx(30, abs=1)
    assert clip.pixels[0].mean() == pytest.approx(60, abs=5)
    assert clip.fps == pytest.approx(30)


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_a_cover_before_the_video_is_not_the_video(tmp_path, write_video):
    levels = 30 * np.arange(8, dtype=np.uint8)
    frames = np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (8, 32, 32, 3)))
    path = write_video(tmp_path / "a.mp4", frames, 10)
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(cover, "JPEG")
    data = box(b"data", struct.pack(">II", 13, 0) + cover.getvalue())
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    meta = bytes(4) + handler + box(b"ilst", box(b"covr", data))
    udta = box(b"udta", box(b"meta", meta))
    content = path.read_bytes()
    moov = content.index(b"moov") - 4  # at the end, so that nothing moves when it grows
    track = content.index(b"trak", moov) - 4
    size = struct.unpack(">I", content[moov : moov + 4])[0] + len(udta)
    head = content[:moov] + struct.pack(">I", size) + content[moov + 4 : track]
    path.write_bytes(head + udta + content[track:])
    clip = read_clip(path, 32)
    assert len(clip.pixels) == 8
    assert clip.pixels[-1].mean() == pytest.approx(210, abs=3)


def write_gif(path, delay):
    pictures = [Image.fromarray(np.full((32, 32, 3), 40 * k, np.uint8)) for k in range(6)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=delay, loop=0)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole + bytes(700),
        lambda whole: whole + b"\r\n",
        lambda whole: whole + b"<?xpacket end='w'?>",
        lambda whole: whole[:-1],
        lambda whole: whole[:-1] + bytes(3) + b";",
    ],
    ids=["zeros", "a line end", "text", "no end mark", "zeros before the mark"],
)
def test_a_gif_with_a_damaged_end_is_read(tmp_path, change):
    path = write_gif(tmp_path / "a.gif", 100)
    path.write_bytes(change(path.read_bytes()))
    assert len(read_clip(path, 32).pixels) == 6


def test_half_a_gif_is_refused(tmp_path):
    path = write_gif(tmp_path / "a.gif", 100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ClipError, match="it ends inside a block"):
        read_clip(path, 32)


@pytest.mark.parametrize(
    ("name", "delay", "fps"),
    [
        ("a.gif", 0, 10),
        ("a.gif", 10, 10),
        ("a.gif", 20, 50),
        ("a.webp", 10, 10),
        ("a.webp", 11, 90.9),
    ],
)
def test_delays_are_those_of_browsers(tmp_path, name, delay, fps):
    assert read_clip(write_gif(tmp_path / name, delay), 32).fps == pytest.approx(fps, abs=0.1)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_an_animation_has_a_limit_of_all_pixels(tmp_path, name, monkeypatch):
    path = write_gif(tmp_path / name, 100)
    monkeypatch.setattr("magicvideo.media.images.MAX_ANIMATION_PIXELS", 6 * 32 * 32 - 1)
    with pytest.raises(ClipError, match="6 frames of 32x32, more than 6,143 pixels together"):
        probe_video(path)


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile {}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_not_a_video(tmp_path, write_video, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("secret.mp4", np.zeros((4, 16, 16, 3), np.uint8))
    (tmp_path / "a.mp4").write_text(PLAYLISTS[kind].format("secret.mp4"))
    with pytest.raises(ClipError, match=r"damaged or no video|a list of other files"):
        probe_video(Path("a.mp4"))


@pytest.mark.parametrize("name", ["concat:secret.mp4", "file:secret.mp4", "tcp:/127.0.0.1:9/x.mp4"])
def test_names_are_never_protocols(tmp_path, write_video, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("secret.mp4", np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(ClipError, match="cannot be read"):
        probe_video(Path(name))


@pytest.mark.parametrize("first_byte", [b"\x01", b"\x02", b"\x7f"])
def test_a_matroska_header_larger_than_the_file_is_refused(tmp_path, first_byte):
    # sizes up to 2^56 bytes, to which no file system seeks
    (tmp_path / "x.webm").write_bytes(b"\x1a\x45\xdf\xa3" + first_byte + b"\xff" * 6 + b"\xfe")
    with pytest.raises(ClipError, match="its Matroska header is not readable"):
        read_clip(tmp_path / "x.webm", 8)

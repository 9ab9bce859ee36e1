"""Invalid files: each is named and skipped with its reason, and the others are used."""

import os
import re
import resource
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.doctor import check_source
from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources.folder import scan
from magicvideo.errors import ClipError
from magicvideo.media.video_reader import read_clip, read_clip_native
from magicvideo.training.loader import load_batch

FRAMES = 13


@pytest.fixture(scope="module")
def good(tmp_path_factory, write_video):
    """One valid file of every format, with 13 different frames."""
    folder = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, 6, 10, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    write_video(folder / "late.mp4", frames)
    write_video(folder / "early.mp4", frames, movflags="faststart")
    write_video(folder / "clip.mkv", frames)
    write_video(folder / "clip.webm", frames, codec="libvpx-vp9")
    write_video(folder / "clip.avi", frames, codec="mpeg4")
    pictures = [Image.fromarray(frame) for frame in frames]
    for name in ("clip.webp", "clip.gif"):
        pictures[0].save(folder / name, save_all=True, append_images=pictures[1:], duration=40)
    return folder


KINDS = ["late.mp4", "early.mp4", "clip.mkv", "clip.webm", "clip.avi", "clip.webp", "clip.gif"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_never_a_shorter_clip(good, tmp_path, kind):
    whole = (good / kind).read_bytes()
    assert len(read_clip(good / kind, 8).pixels) == FRAMES
    path = tmp_path / kind
    for length in [*range(0, len(whole), len(whole) // 23), len(whole) - 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        try:
            decoded = read_clip(path, 8)
        except ClipError:
            continue
        assert len(decoded.pixels) == FRAMES  # nothing but an index was cut off


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_never_escape_as_another_error(good, tmp_path, kind):
    whole = (good / kind).read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / kind
    for _ in range(40):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 5):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            decoded = read_clip(path, 8)
        except ClipError:
            continue
        assert decoded.pixels.shape[1:3] == (8, 8)


def test_damage_that_decoders_skip_is_detected(good, tmp_path):
    avi = (good / "clip.avi").read_bytes()
    place = [found.start() for found in re.finditer(b"00dc", avi)][5]
    (tmp_path / "clip.avi").write_bytes(avi[: place + 208] + bytes(60) + avi[place + 268 :])
    with pytest.raises(ClipError, match=r"frame \d+ is damaged"):
        read_clip(tmp_path / "clip.avi", 8)
    (tmp_path / "clip.avi").write_bytes(avi[:place] + bytes(4) + avi[place + 4 :])
    with pytest.raises(ClipError, match=r"cut off: \d+ of 13 frames are there"):
        read_clip(tmp_path / "clip.avi", 8)
    webm = (good / "clip.webm").read_bytes()
    middle = len(webm) // 2
    (tmp_path / "clip.webm").write_bytes(webm[:middle] + bytes(len(webm) - middle))
    with pytest.raises(ClipError, match=r"cut off: 0\.\d+ of 0\.54 seconds are there"):
        read_clip(tmp_path / "clip.webm", 8)


def test_a_gif_truncated_inside_a_frame_is_detected(tmp_path):
    path = tmp_path / "clip.gif"
    path.write_bytes(GIF_HEAD + GIF_FRAME * 13 + b";")
    assert len(read_clip(path, 8).pixels) == 13
    path.write_bytes(GIF_HEAD + GIF_FRAME * 11 + GIF_FRAME[:-3])
    with pytest.raises(ClipError, match="it ends inside a block"):
        read_clip(path, 8)


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def mixed(good, shapes, tmp_path):
    """Seven valid clips among thirteen invalid ones."""
    folder = shutil.copytree(shapes, tmp_path / "mixed")
    whole = (good / "early.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "garbage.webp").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "nohead.mp4").write_bytes(whole[300:])
    (folder / "notail.mp4").write_bytes(whole[:-200])
    with av.open(str(folder / "noframes.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        container.start_encoding()
    (folder / "words.mkv").write_text("these are words\n" * 100)
    write_sound(folder / "sound.mp4")
    (folder / "pointer.mp4").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    Image.new("RGB", (16, 16)).save(folder / "still.webp")
    (folder / "moving.mp4").write_bytes(b"\0\0\0\x1cftypavis\0\0\0\0" + bytes(64))
    os.mkfifo(folder / "endless.mp4")
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere")
    for path in list(folder.iterdir()):
        if path.suffix != ".txt":
            path.with_suffix(".txt").write_text(f"caption of {path.name}")
    (folder / os.fsdecode(b"caf\xe9.mp4")).write_bytes(whole)
    return folder


EXPECTED = {
    "caf\\xe9.mp4": "its name is not UTF-8; rename it",
    "empty.mp4": "empty file",
    "endless.mp4": "not a regular file",
    "garbage.mp4": "damaged or no video",
    "garbage.webp": "damaged or no video",
    "gone.mp4": "cannot be read (No such file or directory)",
    "moving.mp4": "an AVIF or HEIC picture; convert it",
    "noframes.avi": "no frame can be decoded",
    "nohead.mp4": "damaged or no video",
    "notail.mp4": "damaged or no video",
    "pointer.mp4": "a pointer of Git LFS in place of the video; run git lfs pull",
    "sound.mp4": "only sound",
    "still.webp": "a still picture",
    "words.mkv": "damaged or no video",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_files_are_counted_and_the_others_are_used(mixed, tmp_path, workers):
    source = scan(mixed)
    report = prepare(source, tmp_path / "out", FrameSettings.square(8), workers=workers)
    skipped = {skipped.file: skipped.reason for skipped in report.skipped}
    assert len(skipped) == len(report.skipped)
    assert skipped.keys() == EXPECTED.keys()
    for name, reason in EXPECTED.items():
        assert skipped[name].startswith(reason)
    assert sorted(clip.id for clip in report.clips) == [f"clip00{number}" for number in range(7)]
    batch = load_batch(ClipDataset(tmp_path / "out"), 0, 0, 7, 5)
    assert len(set(batch.clip_ids)) == 7
    doctors = {finding.file for finding in check_source(source) if not finding.split}
    assert doctors == skipped.keys()


def test_the_command_skips_bad_files_and_refuses_if_none_is_left(mixed):
    command = [sys.executable, "-m", "magicvideo", "data", "doctor", mixed, "--skipped"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "clip000" not in done.stdout
    assert "14 skipped, 7 train" in done.stdout
    for path in mixed.glob("clip00*"):
        path.unlink()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: None of the 14 files in ")
    assert done.stderr.count("\n") == 1


GIF_HEAD = b"GIF89a\x01\x00\x01\x00\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff"
GIF_FRAME = (
    b"\x21\xf9\x04\x00\x01\x00\x00\x00"
    + b"\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00"
    + b"\x02\x02D\x01\x00"
)


def write_bombs(folder, good):
    (folder / "million.gif").write_bytes(GIF_HEAD + GIF_FRAME * 1_000_000 + b";")
    canvas = bytearray((good / "clip.gif").read_bytes())
    canvas[6:10] = (60_000).to_bytes(2, "little") * 2
    (folder / "canvas.gif").write_bytes(canvas)
    canvas = bytearray((good / "clip.webp").read_bytes())
    canvas[24:30] = (16_382).to_bytes(3, "little") * 2
    (folder / "canvas.webp").write_bytes(canvas)
    for name, codec, width, height in (
        ("huge.mp4", "mpeg4", 8176, 8176),
        ("large.mp4", "libx264", 4112, 4096),
    ):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=24)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            container.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
            container.mux(stream.encode())
    for name, side in (("broad.png", 13_000), ("wide.png", 20_000)):
        Image.new("1", (side, side)).save(folder / name)


MEASURE = """
import resource, sys, time
from pathlib import Path
from magicvideo.errors import ClipError
from magicvideo.media.video_reader import read_clip
from magicvideo.errors import UserError
from magicvideo.media.images import load_image
from magicvideo.pipelines.video import read_request
how = {
    "clip": lambda path: read_clip(path, 8),
    "like": read_request,
    "picture": load_image,
}
read_clip(Path(sys.argv[1]), 8)
for kind, name in (argument.split(":") for argument in sys.argv[2:]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        how[kind](Path(name))
    except (ClipError, UserError, ValueError) as error:
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(time.process_time() - start, more // 1024, error, sep="|")
"""


def test_decompression_bombs_are_refused(good, tmp_path):
    write_bombs(tmp_path, good)
    expected = {
        "clip:million.gif": "more than 5,000 frames",
        "clip:canvas.gif": "frames of 60000x60000, more than 16,777,216 pixels",
        "clip:canvas.webp": "frames of more than 16,777,216 pixels",
        "clip:huge.mp4": "frames of more than 16,777,216 pixels",
        "clip:large.mp4": "frames of 4112x4096, more than 16,777,216 pixels",
        "picture:broad.png": "The picture broad.png cannot be read: it has 13000x13000 pixels",
        "picture:wide.png": "The picture wide.png cannot be read: it has more than 50,000,000 p",
        "like:broad.png": "broad.png cannot be read as a video: it has 13000x13000 pixels, more",
        "like:wide.png": "wide.png cannot be read as a video: it has more than 16,777,216 pixels",
        "like:canvas.gif": "canvas.gif cannot be read as a video: it has",
        "like:huge.mp4": "huge.mp4 contains no request",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE, good / "clip.mkv", *expected],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    for line, (bomb, reason) in zip(lines, expected.items(), strict=True):
        seconds, megabytes, said = line.split("|")
        assert said.startswith(reason), bomb
        assert float(seconds) < 2
        assert int(megabytes) < 150


def test_a_video_at_its_own_size_has_a_limit_of_all_pixels(good, monkeypatch):
    size = read_clip_native(good / "clip.mkv").pixels.nbytes
    assert size == FRAMES * 48 * 80 * 3
    monkeypatch.setattr("magicvideo.media.video_reader.MAX_CLIP_BYTES", size - 1)
    for kind in ("clip.mkv", "clip.gif"):
        with pytest.raises(ClipError, match="more than 149,759 bytes of pixels; cut it"):
            read_clip_native(good / kind)


def test_a_full_disk_leaves_no_partial_files(shapes, tmp_path):
    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    out = tmp_path / "out"
    command = [sys.executable, "-m", "magicvideo", "data", "prepare", shapes, out]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit_file_size,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: File too large at {out / 'clips'}/clip00")
    assert done.stderr.count("\n") == 1
    assert list((out / "clips").iterdir()) == []
    assert not (out / "manifest.jsonl").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "7 clips" in done.stdout

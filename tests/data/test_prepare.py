import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicvideo.atomic_io import sha256
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import read_info, read_manifest
from magicvideo.data.prepare import FrameSettings, cache_path, fit_frame, parse_size, prepare
from magicvideo.data.sources import folder
from magicvideo.data.sources.synthetic import write_clips
from magicvideo.errors import UserError
from magicvideo.media.video_reader import read_clip


@pytest.fixture
def source(shapes, tmp_path):
    """A copy of the seven videos that may be written into."""
    return shutil.copytree(shapes, tmp_path / "source")


def contents(path):
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): sha256(file) for file in files}


def test_the_cache_has_the_decoded_frames(shapes, prepared):
    clips = read_manifest(prepared)
    assert len(clips) == 7
    for clip in clips:
        decoded = read_clip(shapes / f"{clip.id}.mp4", 24)
        cached = np.load(prepared / clip.file)
        assert np.array_equal(cached, decoded.pixels)
        assert cached.shape == (clip.frames, 24, 24, clip.channels) == (30, 24, 24, 3)
        assert clip.fps == decoded.fps == 24
        assert clip.sha256 == sha256(prepared / clip.file)
        assert clip.text == (shapes / f"{clip.id}.txt").read_text().strip()
    assert read_info(prepared).size == 24


def test_the_number_of_workers_does_not_change_the_result(shapes, prepared, tmp_path):
    report = prepare(folder.scan(shapes), tmp_path / "two", FrameSettings.square(24), workers=2)
    assert len(report.clips) == 7
    different = {"progress.jsonl"}  # its order is that of finishing
    one, two = contents(prepared), contents(tmp_path / "two")
    assert {name for name in one | two if one.get(name) != two.get(name)} <= different


def test_a_second_run_decodes_nothing(source, tmp_path):
    out = tmp_path / "out"
    assert prepare(folder.scan(source), out, FrameSettings.square(8)).num_kept == 0
    before = contents(out)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    assert prepare(folder.scan(source), out, FrameSettings.square(8)).num_kept == 7
    assert contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()} == stamps


def test_only_what_changed_is_decoded_again(source, tmp_path):
    out = tmp_path / "out"
    prepare(folder.scan(source), out, FrameSettings.square(8))
    shutil.copy(source / "clip001.mp4", source / "clip000.mp4")
    (source / "clip002.mp4").unlink()
    (out / cache_path("clip003")).write_bytes(b"half")
    (out / cache_path("clip004")).unlink()
    (source / "clip005.txt").write_text("other words")
    (out / "clips/.partial-old.npy").write_bytes(b"left by a kill")
    report = prepare(folder.scan(source), out, FrameSettings.square(8))
    assert report.num_kept == 3
    clips = {clip.id: clip for clip in report.clips}
    assert clips["clip000"].sha256 == clips["clip001"].sha256
    assert clips["clip005"].text == "other words"
    assert sorted(path.name for path in (out / "clips").iterdir()) == sorted(
        f"{name}.npy" for name in clips
    )
    assert {sha256(out / clip.file) for clip in clips.values()} == {
        clip.sha256 for clip in clips.values()
    }


def test_a_truncated_progress_line_costs_one_clip(source, tmp_path):
    out = tmp_path / "out"
    prepare(folder.scan(source), out, FrameSettings.square(8))
    progress = out / "progress.jsonl"
    progress.write_bytes(progress.read_bytes()[:-30])
    assert prepare(folder.scan(source), out, FrameSettings.square(8)).num_kept == 6
    assert prepare(folder.scan(source), out, FrameSettings.square(8)).num_kept == 7


def test_a_killed_run_continues_where_it_stopped(tmp_path):
    write_clips(tmp_path / "source", 23)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "magicvideo", "data", "prepare", tmp_path / "source", out]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress, deadline = out / "progress.jsonl", time.monotonic() + 60
    while not progress.exists() or progress.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.jsonl").exists()
    report = prepare(folder.scan(tmp_path / "source"), out, FrameSettings.square(64))
    assert 5 <= report.num_kept < 23
    whole = tmp_path / "whole"
    prepare(folder.scan(tmp_path / "source"), whole, FrameSettings.square(64))
    interrupted, unbroken = contents(out), contents(whole)
    assert interrupted == unbroken


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    write_clips(tmp_path / "source", 31)
    arguments = ["data", "prepare", tmp_path / "source", tmp_path / "out", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "magicvideo", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    progress, deadline = tmp_path / "out/progress.jsonl", time.monotonic() + 60
    while not progress.exists() or progress.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    while _members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _members(process.pid) == []


def _members(session):
    """Return the processes of a session, zombies left out."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, owner = path.read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                members.append(path.parent.name)
    return members


@pytest.mark.parametrize("every", [7, 29, 31])
def test_frame_step_keeps_every_nth_frame(shapes, prepared, tmp_path, every):
    out = tmp_path / "out"
    prepare(folder.scan(shapes, 0.35), out, FrameSettings.square(24, step=every))
    assert read_info(out).frame_step == every
    for clip, whole in zip(read_manifest(out), read_manifest(prepared), strict=True):
        kept = np.load(out / clip.file)
        assert np.array_equal(kept, np.load(prepared / whole.file)[::every])
        assert clip.frames == len(kept) == -(-30 // every)
        assert clip.fps == pytest.approx(24 / every)
        assert (clip.id, clip.split) == (whole.id, whole.split)
    assert (
        prepare(folder.scan(shapes, 0.35), out, FrameSettings.square(24, step=every)).num_kept == 7
    )


def test_a_folder_is_not_continued_with_another_frame_step(shapes, tmp_path):
    out = tmp_path / "out"
    prepare(folder.scan(shapes), out, FrameSettings.square(8, step=3))
    before = contents(out)
    with pytest.raises(UserError, match=r"at size 8 with --frame-step 3, not .* at size 8; name"):
        prepare(folder.scan(shapes), out, FrameSettings.square(8))
    with pytest.raises(UserError, match=r"with --frame-step 3, not .* with --frame-step 4;"):
        prepare(folder.scan(shapes), out, FrameSettings.square(8, step=4))
    assert contents(out) == before
    with pytest.raises(UserError, match="--frame-step 0 is not 1"):
        prepare(folder.scan(shapes), tmp_path / "new", FrameSettings.square(8, step=0))
    assert not (tmp_path / "new").exists()


def test_a_folder_of_the_first_format_is_continued(shapes, tmp_path):
    out = tmp_path / "out"
    prepare(folder.scan(shapes), out, FrameSettings.square(8))
    said = json.loads((out / "dataset.json").read_text())
    for name in ("width", "fit", "frame_step"):
        del said[name]
    first = {**said, "format": 1, "size": said.pop("height"), "every": 1}
    del first["height"]
    (out / "dataset.json").write_text(json.dumps(first))
    assert prepare(folder.scan(shapes), out, FrameSettings.square(8)).num_kept == 7


@pytest.mark.parametrize("size", [0, 4, 12, -8, 2048])
def test_odd_sizes_are_refused(shapes, tmp_path, size):
    with pytest.raises(UserError, match=f"size {size} is not a multiple of 8"):
        prepare(folder.scan(shapes), tmp_path / "out", FrameSettings.square(size))
    assert not (tmp_path / "out").exists()


def test_folders_of_other_programs_are_not_changed(source, shapes, tmp_path):
    out = tmp_path / "out"
    prepare(folder.scan(source), out, FrameSettings.square(8))
    before = contents(out)
    with pytest.raises(UserError, match=r"at size 8, not .* at size 16"):
        prepare(folder.scan(source), out, FrameSettings.square(16))
    with pytest.raises(UserError, match=re.escape(f"holds {source}")):
        prepare(folder.scan(shapes), out, FrameSettings.square(8))
    assert contents(out) == before
    with pytest.raises(UserError, match="not empty and holds no prepared data"):
        prepare(folder.scan(shapes), source, FrameSettings.square(8))
    with pytest.raises(UserError, match="is a file"):
        prepare(folder.scan(shapes), source / "clip000.txt", FrameSettings.square(8))


def test_a_source_without_a_usable_clip_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/clip.mp4").write_bytes(b"no video")
    (tmp_path / "source/clip.txt").write_text("a caption")
    with pytest.raises(UserError, match=r"None of the 1 files.*clip\.mp4, damaged"):
        prepare(folder.scan(tmp_path / "source"), tmp_path / "out", FrameSettings.square(8))
    assert not (tmp_path / "out/manifest.jsonl").exists()


def test_a_manifest_never_outlives_its_clips(source, tmp_path):
    prepare(folder.scan(source), tmp_path / "out", FrameSettings.square(8))
    for path in source.glob("*.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(UserError, match="None of the 7 files"):
        prepare(folder.scan(source), tmp_path / "out", FrameSettings.square(8))
    assert not (tmp_path / "out/manifest.jsonl").exists()


def test_cached_files_have_safe_unique_names():
    ids = ["clip", "a b", "a_b", "a/b", "A_B", "a?b", "ä", "x" * 300, "x" * 301, "..", "CON:"]
    files = [cache_path(clip_id) for clip_id in ids]
    assert len(set(files)) == len(ids)
    assert all(re.fullmatch(r"clips/[a-z0-9_-]{1,93}\.npy", file) for file in files)


def test_progress_is_reported_to_the_end(shapes, tmp_path):
    seen = []
    prepare(
        folder.scan(shapes),
        tmp_path / "out",
        FrameSettings.square(8),
        on_clip=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 7) for done in range(1, 8)]
    lines = (tmp_path / "out/progress.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {f"clip00{n}" for n in range(7)}


def stripes(height, width):
    """Four frames whose columns are red, green and blue thirds."""
    frames = np.zeros((4, height, width, 3), np.uint8)
    for third in range(3):
        frames[:, :, third * width // 3 : (third + 1) * width // 3, third] = 255
    return frames


def test_a_crop_keeps_the_centre_in_the_shape_of_the_result():
    picture = Image.fromarray(stripes(20, 60)[0])
    square, opaque = fit_frame(picture, 8, 8, "crop")
    assert opaque
    assert (square == (0, 255, 0)).all()  # the middle third alone
    wide, _ = fit_frame(picture, 8, 24, "crop")
    assert wide.shape == (8, 24, 3)
    assert wide[4, [2, 12, 22]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    tall, _ = fit_frame(picture.rotate(90, expand=True), 16, 8, "crop")
    assert tall.shape == (16, 8, 3)


def test_padding_keeps_the_whole_frame_between_bars():
    picture = Image.fromarray(stripes(20, 60)[0])
    padded, opaque = fit_frame(picture, 24, 24, "pad")
    assert opaque
    assert padded.shape == (24, 24, 3)
    assert not padded[:8].any()
    assert not padded[16:].any()
    assert padded[12, [2, 12, 22]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    glass = Image.fromarray(np.full((20, 60, 4), 100, np.uint8), "RGBa")
    padded, opaque = fit_frame(glass, 24, 24, "pad")
    assert not opaque
    assert not padded[:8].any()
    assert (padded[8:16] == 100).all()


def test_frames_of_any_shape_are_prepared_and_read(tmp_path, write_video):
    source = tmp_path / "source"
    source.mkdir()
    write_video(source / "a.mp4", stripes(20, 60))
    (source / "a.txt").write_text("stripes")
    out = tmp_path / "out"
    prepare(folder.scan(source), out, FrameSettings(16, 48, "pad"))
    info = read_info(out)
    assert (info.height, info.width, info.fit) == (16, 48, "pad")
    dataset = ClipDataset(out)
    sample = dataset.sample(0, np.random.default_rng(0), num_frames=2)
    assert sample.frames.shape == (2, 3, 16, 48)
    red, green, blue = sample.frames[0, :, 8, [6, 24, 42]].T
    assert (red.argmax(), green.argmax(), blue.argmax()) == (0, 1, 2)
    with pytest.raises(UserError, match=r"at size 48x16 with --fit pad, not .* at size 16; name"):
        prepare(folder.scan(source), out, FrameSettings.square(16))


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("96x64", (64, 96)), (" 8X16 ", (16, 8))]
)
def test_sizes_are_read_width_first(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "64x", "64*32", "-8", "6.4", "64x64x3"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match="is not a size; give one such as 64, or 96x64"):
        parse_size(text)


def test_a_second_preparation_of_one_folder_is_refused_while_the_first_runs(shapes, tmp_path):
    refused = []

    def prepare_again(done, _):
        if done == 1:
            with pytest.raises(UserError, match=r"out is being written by process \d+ on") as error:
                prepare(folder.scan(shapes), tmp_path / "out", FrameSettings.square(8))
            refused.append(error)

    frames = FrameSettings.square(8)
    report = prepare(folder.scan(shapes), tmp_path / "out", frames, on_clip=prepare_again)
    assert (len(report.clips), len(refused)) == (7, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

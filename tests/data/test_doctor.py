import shutil
from dataclasses import replace

import numpy as np
import pytest

from magicvideo.cli import run
from magicvideo.data.doctor import (
    check_prepared,
    check_source,
    count_by_cause,
    is_prepared_folder,
)
from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources import folder
from magicvideo.data.sources.source import Source, SourceClip
from magicvideo.errors import UserError


@pytest.mark.parametrize("workers", [1, 2])
def test_the_doctor_and_the_preparation_agree(shapes, tmp_path, workers):
    source_folder = shutil.copytree(shapes, tmp_path / "source")
    (source_folder / "clip001.mp4").write_bytes(b"")
    (source_folder / "clip002.txt").unlink()
    source = folder.scan(source_folder, 0.35)
    findings = check_source(source, workers=workers)
    report = prepare(source, tmp_path / "out", FrameSettings.square(8))
    assert [finding.file for finding in findings] == [f"clip00{n}.mp4" for n in range(7)]
    assert {f.file: f.detail for f in findings if not f.split} == {
        skipped.file: skipped.reason for skipped in report.skipped
    }
    assert {f.file: f.split for f in findings if f.split} == {
        f"{clip.id}.mp4": clip.split for clip in report.clips
    }
    assert findings[0].detail == "64x64 pixels, 30 frames at 24 a second, opaque"


def test_a_clip_without_a_caption_is_used_and_reported(shapes, tmp_path):
    source = folder.scan(shapes, 0.0)
    some = [replace(source.clips[0], text=None), source.clips[1]]
    source = replace(source, clips=some)
    prepare(source, tmp_path / "out", FrameSettings.square(8))
    checks = (("64x64", check_source(source)), ("8x8", check_prepared(tmp_path / "out")))
    for size, findings in checks:
        assert [(finding.split, finding.detail) for finding in findings] == [
            ("train", f"{size} pixels, 30 frames at 24 a second, opaque, no caption"),
            ("train", f"{size} pixels, 30 frames at 24 a second, opaque"),
        ]


def test_a_prepared_folder_is_checked_to_the_last_byte(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    assert all(finding.split for finding in check_prepared(copy))
    path = copy / "clips/clip003.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (copy / "clips/clip004.npy").unlink()
    (copy / "clips/other.npy").touch()
    seen = []
    findings = check_prepared(copy, on_file=lambda done, total: seen.append((done, total)))
    assert {finding.file: finding.detail for finding in findings if not finding.split} == {
        "clips/clip003.npy": "damaged: its SHA-256 is not the manifest's",
        "clips/clip004.npy": "missing",
        "clips/other.npy": "not in the manifest",
    }
    assert seen[-1] == (7, 7)


def test_prepared_folders_and_sources_are_distinguished(prepared, shapes):
    assert is_prepared_folder(prepared)
    assert not is_prepared_folder(shapes)


def test_an_unfinished_folder_is_refused(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    (copy / "manifest.jsonl").unlink()
    with pytest.raises(UserError, match="magicvideo data prepare"):
        check_prepared(copy)


def small_source(tmp_path, write_video, frames, caption="a ferret runs"):
    path = write_video(tmp_path / "clip.mp4", frames, 4)
    clip = SourceClip("clip", "clip.mp4", path, "train", loops=False, text=caption)
    return Source("folder", tmp_path, "", "", [clip], [])


def test_suspicious_clips_give_a_warning(tmp_path, write_video):
    source = small_source(tmp_path, write_video, np.zeros((3, 24, 56, 3), np.uint8))
    unknown = {"a ferret runs": ["ferret"]}
    (finding,) = check_source(source, FrameSettings.square(32), unknown_words=unknown.get)
    assert finding.split == "train"
    assert finding.detail == ("56x24 pixels, 3 frames at 4 a second, opaque, cropped to 43% of it")
    assert finding.warnings == (
        "only 3 frames, fewer than the 16 of a training sample",
        "only 4 frames per second",
        "enlarged to 32x32 pixels, which adds no detail",
        "more than half of each frame is cut off; --fit pad keeps all of it",
        'the model has not seen "ferret"',
    )


def test_padding_keeps_the_whole_frame(tmp_path, write_video):
    source = small_source(tmp_path, write_video, np.zeros((3, 24, 56, 3), np.uint8))
    (finding,) = check_source(source, FrameSettings(32, 32, "pad"))
    assert finding.detail.endswith("opaque, padded with bars")
    assert len(finding.warnings) == 2  # of few frames and their rate: 56 pixels become 32


def test_reasons_that_differ_only_in_numbers_are_counted_together():
    reasons = ["cut off: 46 of 120 frames are there", "cut off: 1,046 of 2,000 frames are there"]
    words = ['the model has not seen "a", "b"', 'the model has not seen "c"', "no caption"]
    assert count_by_cause([*reasons, *words]) == [
        ("cut off: N of N frames are there", 2),
        ("the model has not seen a word", 2),
        ("no caption", 1),
    ]


def test_words_that_the_bundled_model_has_not_seen_are_named(shapes, tmp_path, capsys):
    shutil.copy(shapes / "clip000.mp4", tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a red zorblax")
    assert run(["data", "doctor", str(tmp_path), "--model", "bundled"]) == 0
    said = capsys.readouterr().out
    assert "zorblax" in said
    assert "red" not in said

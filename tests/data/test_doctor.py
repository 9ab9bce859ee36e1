import shutil
from dataclasses import replace

import pytest

from magicvideo.data.doctor import check_prepared, check_source, is_prepared_folder
from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources import folder
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
    assert findings[0].detail == "30 frames at 24 a second, opaque"


def test_a_clip_without_a_caption_is_used_and_told(shapes, tmp_path):
    source = folder.scan(shapes, 0.0)
    some = [replace(source.clips[0], text=None), source.clips[1]]
    source = replace(source, clips=some)
    prepare(source, tmp_path / "out", FrameSettings.square(8))
    for findings in (check_source(source), check_prepared(tmp_path / "out")):
        assert [(finding.split, finding.detail) for finding in findings] == [
            ("train", "30 frames at 24 a second, opaque, no caption"),
            ("train", "30 frames at 24 a second, opaque"),
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


def test_prepared_folders_are_told_from_sources(prepared, shapes):
    assert is_prepared_folder(prepared)
    assert not is_prepared_folder(shapes)


def test_an_unfinished_folder_is_refused(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    (copy / "manifest.jsonl").unlink()
    with pytest.raises(UserError, match="magicvideo data prepare"):
        check_prepared(copy)

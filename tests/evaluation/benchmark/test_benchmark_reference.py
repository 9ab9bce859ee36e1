import numpy as np
import pytest

from magicvideo.data.manifest import read_manifest
from magicvideo.errors import ClipError, UserError
from magicvideo.evaluation.benchmark.prompts import read_clip_pixels, reference_clips


def test_a_folder_of_videos_with_captions(shapes):
    clips = reference_clips(shapes, "train")
    assert [clip.id for clip in clips] == [f"clip{number:03d}" for number in range(7)]
    caption = (shapes / "clip003.txt").read_text(encoding="utf-8").strip()
    assert clips[3].captions == (caption,)
    found = read_clip_pixels(clips[3].path, clips[3].fps)
    assert found.pixels.shape == (30, 64, 64, 3)
    assert found.fps == 24
    with pytest.raises(UserError, match="has no clip with a caption in the split heldout"):
        reference_clips(shapes, "heldout")


def test_a_prepared_folder(prepared):
    manifest = [clip for clip in read_manifest(prepared) if clip.split == "train"]
    clips = reference_clips(prepared, "train")
    assert [clip.id for clip in clips] == [clip.id for clip in manifest]
    assert [clip.captions for clip in clips] == [(clip.text,) for clip in manifest]
    found = read_clip_pixels(clips[0].path, clips[0].fps)
    assert np.array_equal(found.pixels, np.load(prepared / manifest[0].file))
    assert found.fps == manifest[0].fps


def test_unusable_files_have_a_reason(tmp_path):
    np.save(tmp_path / "clear.npy", np.zeros((3, 5, 6, 4), np.uint8))
    with pytest.raises(ClipError, match="transparent"):
        read_clip_pixels(tmp_path / "clear.npy", 8.0)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ClipError, match="cannot be read"):
        read_clip_pixels(tmp_path / "cut.npy", 8.0)

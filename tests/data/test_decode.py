from dataclasses import replace

import numpy as np
import pytest

from magicvideo.atomic_io import sha256
from magicvideo.data.prepare import FrameSettings, decode_source_clip, fingerprint
from magicvideo.data.sources.source import SourceClip
from magicvideo.errors import ClipError


@pytest.fixture
def candidate(tmp_path, write_video):
    """Eleven frames, of which the first three are black and the others white."""
    frames = np.zeros((11, 16, 24, 3), np.uint8)
    frames[3:] = 255
    path = write_video(tmp_path / "clip.mp4", frames, 10)
    return SourceClip("clip", "clip.mp4", path, "train", loops=False)


def test_a_candidate_is_a_file_or_a_span_or_a_scene_of_either(candidate):
    assert len(decode_source_clip(candidate, FrameSettings.square(8)).pixels) == 11
    scene = decode_source_clip(replace(candidate, longest_scene=True), FrameSettings.square(8))
    assert (len(scene.pixels), scene.fps) == (8, 10)
    assert scene.pixels.min() > 200
    span = replace(candidate, span=(0.1, 0.5))
    assert len(decode_source_clip(span, FrameSettings.square(8)).pixels) == 4
    assert (
        len(decode_source_clip(replace(span, longest_scene=True), FrameSettings.square(8)).pixels)
        == 2
    )
    with pytest.raises(ClipError, match="no two frames without a cut"):
        decode_source_clip(
            replace(candidate, span=(0.2, 0.4), longest_scene=True), FrameSettings.square(8)
        )
    with pytest.raises(ClipError, match="has 11 frames instead of 12"):
        decode_source_clip(replace(candidate, frames=12), FrameSettings.square(8))


def test_fingerprints_differ_if_the_frames_differ(candidate):
    different = [
        candidate,
        replace(candidate, span=(0.1, 0.5)),
        replace(candidate, span=(0.1, 0.6)),
        replace(candidate, longest_scene=True),
        replace(candidate, span=(0.1, 0.5), longest_scene=True),
    ]
    assert len({fingerprint(one) for one in different}) == 5
    assert fingerprint(candidate) == sha256(candidate.path)
    assert fingerprint(replace(candidate, id="other", text="words")) == fingerprint(candidate)
    candidate.path.write_bytes(candidate.path.read_bytes() + b"more")
    assert fingerprint(candidate) == sha256(candidate.path)
    candidate.path.unlink()
    assert fingerprint(candidate) == ""

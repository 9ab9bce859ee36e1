"""A tiny real video for data sets of any layout."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def put_clips(tmp_path_factory, write_video):
    """A function that puts a video of 5 frames at each of some paths below a folder."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    content = write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames).read_bytes()

    def put(folder, *names):
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return put


@pytest.fixture
def prepared_clips(tmp_path):
    """A function that prepares a source and returns its clips by id, and what was skipped."""
    from magicvideo.data.prepare import FrameSettings, prepare

    def run(source):
        report = prepare(source, tmp_path / "out", FrameSettings.square(8))
        return {clip.id: clip for clip in report.clips}, {
            skipped.file: skipped.reason for skipped in report.skipped
        }

    return run

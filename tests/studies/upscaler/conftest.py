"""A tiny model with an upscaler, and large clips with a rectangle that moves in one half."""

from pathlib import Path

import numpy as np
import pytest
from tiny_model import make_tiny_pipeline

from magicvideo.atomic_io import sha256
from magicvideo.data.manifest import Attributes, ClipRecord, DatasetInfo, write_info, write_manifest

LARGE, LARGE_FRAMES, LARGE_CLIPS = 48, 7, 4


@pytest.fixture(scope="session")
def pipeline():
    return make_tiny_pipeline()


@pytest.fixture(scope="session")
def large_clips(tmp_path_factory) -> Path:
    """Four held-out clips of 48 pixels."""
    folder = tmp_path_factory.mktemp("large") / "data"
    (folder / "clips").mkdir(parents=True)
    clips = [_write_clip(folder, number) for number in range(LARGE_CLIPS)]
    write_info(
        folder,
        DatasetInfo(
            source="test",
            origin="here",
            height=LARGE,
            width=LARGE,
            licence="none",
            split_rule="all",
        ),
    )
    write_manifest(folder, clips)
    return folder


def _write_clip(folder: Path, number: int) -> ClipRecord:
    pixels = np.zeros((LARGE_FRAMES, LARGE, LARGE, 4), np.uint8)
    for place, frame in enumerate(pixels):
        top = 8 + (3 + number) * (place % 4)
        frame[top : top + 11, 5:19] = (250 - 40 * number, 30 * number, 90, 255)
    path = folder / "clips" / f"{number}.npy"
    np.save(path, pixels)
    return ClipRecord(
        id=str(number),
        file=f"clips/{number}.npy",
        frames=LARGE_FRAMES,
        fps=3.0,
        channels=4,
        split="heldout",
        loops=True,
        sha256=sha256(path),
        attributes=Attributes(name=f"block {number}", base=f"block {number}"),
    )

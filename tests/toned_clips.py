"""A small prepared data set with backgrounds and tones, and a judge with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from magicvideo.atomic_io import sha256
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import Attributes, ClipRecord, DatasetInfo, write_info, write_manifest
from magicvideo.evaluation.judge.network import Judge, save_judge
from magicvideo.evaluation.judge.training import judge_config

SIZE, FRAMES, FPS = 24, 13, 24.0
TONES = {
    None: (250, 210, 60),
    "light": (240, 200, 170),
    "medium": (170, 120, 80),
    "dark": (80, 50, 30),
}
BASES = ("man running", "woman running", "waving hand", "thumbs up", "bear", "boat")
TONELESS = ("bear", "boat")
HELDOUT = {("woman running", "light"), ("waving hand", "medium"), ("thumbs up", "dark")}


@pytest.fixture(scope="session")
def emoji(tmp_path_factory) -> Path:
    """Eighteen clips with transparency: rectangles by base, coloured by tone, that move."""
    folder = tmp_path_factory.mktemp("emoji") / "data"
    (folder / "clips").mkdir(parents=True)
    clips = [
        _write_clip(folder, base, tone)
        for base in BASES
        for tone in (TONES if base not in TONELESS else [None])
    ]
    write_info(
        folder,
        DatasetInfo(
            source="test",
            origin="here",
            height=SIZE,
            width=SIZE,
            licence="none",
            split_rule="by hand",
        ),
    )
    write_manifest(folder, clips)
    return folder


@pytest.fixture
def every_clip(emoji) -> ClipDataset:
    return ClipDataset(emoji, ("train", "heldout"))


@pytest.fixture
def judge(every_clip) -> Judge:
    torch.manual_seed(3)
    return Judge(judge_config(every_clip)).eval()


@pytest.fixture
def judge_folder(judge, tmp_path) -> Path:
    save_judge(judge, "{}", tmp_path / "judge")
    return tmp_path / "judge"


def _write_clip(folder: Path, base: str, tone: str | None) -> ClipRecord:
    identity = f"{base}-{tone or 'default'}".replace(" ", "-")
    path = folder / "clips" / f"{identity}.npy"
    np.save(path, _pixels(BASES.index(base), TONES[tone]))
    return ClipRecord(
        id=identity,
        file=f"clips/{identity}.npy",
        frames=FRAMES,
        fps=FPS,
        channels=4,
        split="heldout" if (base, tone) in HELDOUT else "train",
        loops=True,
        sha256=sha256(path),
        attributes=Attributes(
            name=base, base=base, skin_tone=tone, activity=base.split()[-1], subgroup="all"
        ),
    )


def _pixels(shape: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Draw a rectangle whose proportions tell the base and which sways; corners stay empty."""
    height, width = 6 + 2 * (shape % 3), 6 + 3 * (shape // 3)
    pixels = np.zeros((FRAMES, SIZE, SIZE, 4), np.uint8)
    for number, frame in enumerate(pixels):
        left = 4 + number % 5  # no stride of a protocol is a multiple of it
        frame[7 : 7 + height, left : left + width] = (*colour, 255)
    return pixels

"""The verb as a user types it, on a tiny model and tiny data."""

import pytest

from magicvideo.cli import run
from magicvideo.storage import folder_hash


@pytest.fixture
def words(tiny_model, large_clips, tmp_path):
    return {
        "--data": large_clips,
        "--model": tiny_model,
        "--output": tmp_path / "results.md",
        "--clips": 3,
        "--moving-clips": 2,
        "--moving-frames": 4,
    }


def evaluate(words):
    return run(["evaluate", "upscaler", *(str(word) for pair in words.items() for word in pair)])


def test_the_command_fills_its_section(words, tiny_model, emoji, capsys):
    assert evaluate({**words, "--steps": 3, "--moving": emoji, "--frames": 2}) == 0
    said = capsys.readouterr()
    assert "quality: 3 of 3" in said.err
    assert "flicker: 2 of 2" in said.err
    page = words["--output"].read_text(encoding="utf-8")
    assert "--steps 3 --moving data --moving-clips 2 --moving-frames 4 --seed 0`" in page
    assert "3 held-out clips, 2 frames in a row of 52 pixels from each" in page
    assert "2 held-out clips of 4 frames in a row, enlarged from 24 pixels" in page
    names = [line.split(" | ")[0] for line in page.splitlines() if line.endswith(" |")]
    quality = ["| **network, 2 steps (default)**", "| network, 3 steps", "| bicubic", "| Lanczos"]
    stillness = ["| network, 2 steps", "| bicubic", "| Lanczos", "| real clips"]
    assert [name for name in names if name in {*quality, *stillness}] == quality + stillness
    assert "| real clips | 2 | 0.0000 [0.0000, 0.0000] |" in page
    assert f"| model | {folder_hash(tiny_model)} |" in page
    assert "| clips in a row | " in page
    assert "Tiles: a frame of 52 pixels made in tiles of 42" in page


def test_without_small_clips_the_large_ones_are_shrunk_for_flicker(words):
    assert evaluate(words | {"--steps": 1}) == 0
    page = words["--output"].read_text(encoding="utf-8")
    assert "4 frames in a row, enlarged from 26 pixels" in page
    assert "| clips in a row | " not in page


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--clips": 5}, "asks for 5 clips, but"),
        ({"--moving": "nowhere"}, "nowhere is not a prepared data set"),
        ({"--steps": 2000}, "num_steps=2000 of the upscaler is not between 1 and 1000"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(words, change, sentence, capsys):
    assert evaluate(words | change) == 2
    assert sentence in capsys.readouterr().err
    assert not words["--output"].exists()

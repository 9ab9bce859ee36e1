"""The command `upscaler` on a tiny model and tiny data."""

import numpy as np
import pytest
from PIL import Image

from magicvideo.atomic_io import hash_folder
from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts, to_uint8
from studies.__main__ import run
from studies.upscaler.evaluation import BEFORE, FINISHED


@pytest.fixture
def words(tiny_model, large_clips, tmp_path):
    return {
        "--data": large_clips,
        "--model": tiny_model,
        "--output": tmp_path / "results.md",
        "--clips": 3,
        "--moving-clips": 2,
        "--moving-frames": 4,
        "--generated": 2,
    }


def evaluate(words):
    return run(["upscaler", *(str(word) for pair in words.items() for word in pair)])


def test_the_command_fills_its_section(words, tiny_model, emoji, capsys):
    asked = {"--steps": 3, "--noise": 0.5, "--moving": emoji, "--frames": 2}
    assert evaluate(words | asked) == 0
    said = capsys.readouterr()
    assert "quality: 3 of 3" in said.err
    assert "quality of decoded frames, noise 0.5: 3 of 3" in said.err
    assert "flicker: 2 of 2" in said.err
    assert "generated: 2 of 2" in said.err
    page = words["--output"].read_text(encoding="utf-8")
    assert "--frames 2 --steps 3 --noise 0.5 --moving data --moving-clips 2" in page
    assert "--moving-frames 4 --generated 2 --seed 0`" in page
    assert "3 held-out clips, 2 consecutive frames of 48 pixels from each" in page
    assert "2 held-out clips of 4 consecutive frames, upscaled from 24 pixels" in page
    names = [line.split(" | ")[0] for line in page.splitlines() if line.endswith(" |")]
    default, other, *resized = "| network, 2 steps", "| network, 3 steps", "| bicubic", "| Lanczos"
    bicubic, lanczos = resized
    assert [name for name in names[: names.index("| depends on")] if name != "| ---"] == [
        "| method",
        "| **network, 2 steps (default)**",
        *(other, *resized),
        *("| compared with network, 2 steps", other, *resized),
        *("| compared with Lanczos", default, other, bicubic),
        *("| compared with bicubic", default, other, lanczos),
        "| noise",
        *["| 0.5"] * 3,
        "| method",
        *(default, *resized, "| real clips"),
        *("| videos", f"| {BEFORE}", f"| {FINISHED}", "| real clips"),
    ]
    assert "| 0.5 | Lanczos | 3 | " in page
    assert "2 held-out captions with the model's default settings, 13 frames at 21 per " in page
    assert "by the stages keyframes, interpolation, upscaler, without a codec" in page
    assert "| real clips | 2 | 0.0000 [0.0000, 0.0000] |" in page
    assert f"| model | {hash_folder(tiny_model)} |" in page
    assert "| clips with all frames | " in page
    assert "Tiles: a frame of 48 pixels upscaled in tiles of 40" in page


def test_without_small_clips_the_large_ones_are_downsampled_for_flicker(words):
    assert evaluate(words | {"--steps": 1, "--generated": 0}) == 0
    page = words["--output"].read_text(encoding="utf-8")
    assert "4 consecutive frames, upscaled from 24 pixels" in page
    assert "| clips with all frames | " not in page
    assert "Finished videos" not in page
    assert [page.count(f"| {noise} | bicubic | 3 | ") for noise in (0, 0.1)] == [1, 1]


def test_the_sheet_shows_the_same_frames_small_upscaled_and_real(words, large_clips, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert evaluate(words | {"--steps": 1, "--generated": 0, "--sheet": sheet}) == 0
    pixels = np.array(Image.open(sheet)).astype(int)
    # small, bicubic, Lanczos, ours, real; three clips beside their words, in frames of 48 pixels
    assert pixels.shape == (5 * 48 + 6 * 4, 220 + 3 * (48 + 4), 3)
    shown = pixels[:, 220:].reshape(-1, 3, 52, 3)[:, :, :48]
    rows = [shown[4 + 52 * row : 52 + 52 * row].swapaxes(0, 1) for row in range(5)]
    small, bicubic, _, network, real = rows
    dataset = ClipDataset(large_clips, ("heldout",))
    clips = real_videos(dataset, sample_prompts(dataset, 3, 0), 1, 1)
    assert np.array_equal(real, np.concatenate([to_uint8(clip) for clip in clips]))
    assert np.array_equal(small[:, ::2, ::2], small[:, 1::2, 1::2])
    assert np.abs(small[:, ::2, ::2] - real.reshape(3, 24, 2, 24, 2, 3).mean((2, 4))).max() < 40
    errors = [np.abs(row - real).mean() for row in rows]
    assert errors[1] < errors[3]  # the network's weights are random
    assert not np.array_equal(bicubic, network)
    assert f"--sheet {sheet.name}`" in words["--output"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--clips": 5}, "asks for 5 clips, but"),
        ({"--generated": 5}, "asks for 5 clips, but"),
        ({"--moving": "nowhere"}, "nowhere is not a prepared data set"),
        ({"--sheet": "nowhere/sheet.png"}, "nowhere is not a folder; create it first"),
        ({"--steps": 2000}, "num_steps=2000 of the upscaler must be from 1 to 1000"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(words, change, sentence, capsys):
    assert evaluate(words | change) == 2
    assert sentence in capsys.readouterr().err
    assert not words["--output"].exists()

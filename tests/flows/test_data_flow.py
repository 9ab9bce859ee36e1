"""From raw videos to a training batch, through the real command line."""

import json
import re
import subprocess
import sys

import torch

from magicvideo import cli
from magicvideo.data.backgrounds import nearest_colour
from magicvideo.data.dataset import ClipDataset
from magicvideo.training.loader import load_batch


def magicvideo(*arguments):
    command = [sys.executable, "-m", "magicvideo", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_synthetic_clips_become_batches_whose_captions_are_true(tmp_path):
    shapes, out = tmp_path / "shapes", tmp_path / "out"
    done = magicvideo("data", "synthetic", shapes, "--clips", 13)
    assert "13 clips, such as 'yellow square moving down, pink background'" in done.stdout
    assert "13 train" in magicvideo("data", "doctor", shapes).stdout
    done = magicvideo("data", "prepare", shapes, out, "--size", 16, "--holdout", 0.3)
    train, heldout = map(int, re.search(r"\((\d+) train, (\d+) heldout\)", done.stdout).groups())
    assert train + heldout == 13
    assert heldout > 0
    assert f"{train} train, {heldout} heldout" in magicvideo("data", "doctor", out).stdout

    dataset = ClipDataset(out)
    assert len(dataset) == train
    batch = load_batch(dataset, seed=0, step=2, batch_size=5, num_frames=7, strides=(1, 3))
    assert batch.frames.shape == (5, 7, 3, 16, 16)
    assert set(batch.fps.tolist()) <= {24, 12, 8}
    for frames, caption in zip(batch.frames, batch.captions, strict=True):
        (background,) = re.findall(r", (\w+) background", caption)
        corner = (frames[:, :, 0, 0].mean(0) + 1) * 127.5
        assert nearest_colour(corner) == background
        assert not torch.equal(frames[0], frames[-1])


def test_preparing_again_continues_and_reports_it(tmp_path):
    shapes, out = tmp_path / "shapes", tmp_path / "out"
    magicvideo("data", "synthetic", shapes, "--clips", 3)
    magicvideo("data", "prepare", shapes, out, "--size", 8)
    (shapes / "new.mp4").write_bytes((shapes / "clip000.mp4").read_bytes())
    (shapes / "metadata.jsonl").write_text(
        json.dumps({"file_name": "new.mp4", "text": "one more", "split": "heldout"})
    )
    (shapes / "clip001.txt").unlink()
    done = magicvideo("data", "prepare", shapes, out, "--size", 8, "--workers", 2)
    assert "3 clips (2 train, 1 heldout), 1 files skipped, 2 existing clips" in done.stdout
    assert "skipped clip001.mp4: no caption" in done.stderr
    magicvideo("data", "prepare", shapes, tmp_path / "thin", "--size", 16, "--frame-step", 4)
    assert {clip.fps for clip in ClipDataset(tmp_path / "thin").clips} == {6}


def test_clips_of_films_are_examined_and_prepared(tmp_path, capsys):
    shapes, films, out = tmp_path / "shapes", tmp_path / "films", tmp_path / "out"
    assert cli.run(["data", "synthetic", str(shapes), "--clips", "3"]) == 0
    films.mkdir()
    for number in range(3):
        (shapes / f"clip00{number}.mp4").rename(films / f"film{number}.mp4")
    entries = [
        {"video_id": "film0", "start": 0, "end": 0.5, "caption": "a shape"},
        {"video_id": "film0", "start": 0.5, "end": 1, "caption": ["a", "b"], "split": "val"},
        {"video_id": "film1", "start": 0, "end": "00:00:01.000"},
        {"video_id": "film2", "start": 1, "end": 3, "split": "test"},
    ]
    (films / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    capsys.readouterr()
    assert cli.run(["data", "doctor", str(films), "--source", "clip-list"]) == 0
    assert "1 skipped: ends at 3 seconds, and the video at 1.25" in capsys.readouterr().out
    arguments = [str(films), str(out), "--size", "8", "--longest-scene"]
    assert cli.run(["data", "prepare", *arguments]) == 0
    said = capsys.readouterr()
    counts = "3 clips (2 train, 1 validation, 0 heldout), 1 without a caption, 1 files skipped"
    assert counts in said.out
    assert "skipped film2.mp4 from 1 to 3 seconds: ends at 3 seconds" in said.err
    assert {clip.frames for clip in ClipDataset(out, ("train", "validation")).clips} == {12, 24}


def test_mistakes_give_one_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for arguments, sentence in {
        ("doctor", tmp_path / "absent"): "absent is not a folder",
        ("doctor", tmp_path / "empty"): "empty holds no file",
        ("prepare", tmp_path / "empty", tmp_path / "out"): "empty holds no file",
        ("synthetic", tmp_path / "new", "--clips", 401): "ask for 1 to 400",
        ("synthetic", tmp_path / "file"): "not an empty folder",
        ("prepare", tmp_path / "empty", tmp_path / "out", "--source", "webvid"): "it is empty.",
        ("doctor", tmp_path / "empty", "--source", "films"): "'films' is not known; take fluent-",
        ("fetch", "fluent-emojis", tmp_path / "new"): "use fluent-emoji",
        ("fetch", "fluent-emoji", tmp_path / "file"): "is a file",
    }.items():
        assert cli.run(["data", *map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert sentence in said.err
        assert said.err.count("\n") == 1
        assert said.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]

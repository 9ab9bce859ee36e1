"""The commands of a human study, with tiny models and finished videos."""

import os
import re
import signal
import subprocess
import sys
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from magicvideo.cli import run as generate
from studies.__main__ import run
from studies.human_study.study import read_study


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\n", encoding="utf-8")
    return path


def compare(*words):
    return run(["compare", *map(str, words)])


def test_a_model_and_its_own_videos_are_compared(tiny_model, prompts, tmp_path, capsys):
    finished, study = tmp_path / "finished", tmp_path / "study"
    made = ["--model", tiny_model, "--steps", "2", "--stages", "keyframes", "--seed", "4"]
    words = ["generate", "--prompts", prompts, *made, "--output", finished, "--format", "mp4"]
    assert generate(list(map(str, words))) == 0
    words = [
        tiny_model,
        finished,
        "--prompts",
        prompts,
        "--study",
        study,
        *made[2:],
        "--prepare-only",
    ]
    assert compare(*words) == 0
    pairs = read_study(study)
    videos = pairs.videos(study)
    kept = {path: path.stat().st_mtime_ns for path in videos.values()}
    assert len(kept) == 4
    for pair in range(
        2
    ):  # the finished video is that of the model with the same seed, encoded twice
        one, two = (videos[pairs.video_name(side, pair)].read_bytes() for side in "ab")
        assert abs(len(one) - len(two)) < 0.1 * len(one)
    gone = videos[pairs.video_name("a", 1)]
    content = gone.read_bytes()
    gone.unlink()
    assert compare(*words) == 0  # what was stopped goes on, with the same bytes
    assert gone.read_bytes() == content
    assert sum(path.stat().st_mtime_ns != before for path, before in kept.items()) == 1
    capsys.readouterr()
    assert compare(*words, "--steps", "3") == 2
    assert "another value of settings" in capsys.readouterr().err


def test_a_served_study_is_reported(made, tmp_path, capsys):
    study = tmp_path / "study"
    study.mkdir()
    for name in ("study.json", "videos"):
        (study / name).symlink_to(made / name)
    assert run(["compare-report", str(study)]) == 2
    assert "has no votes yet" in capsys.readouterr().err
    words = [sys.executable, "-m", "studies", "compare"]
    words += ["--study", str(study), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, bufsize=1) as server:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())[0]
            answers = {"quality": "left", "text": "left", "motion": "same"}
            for pair in range(5):
                form = urlencode(answers | {"rater": "Ada", "pair": pair}).encode()
                with urlopen(address + "vote", form) as answer:
                    assert answer.status == 200
        finally:
            os.kill(server.pid, signal.SIGINT)
        rest = server.stdout.read()
    assert server.returncode == 0
    assert f"python -m studies compare-report {study}" in rest
    page = tmp_path / "results.md"
    assert run(["compare-report", str(study), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert "Human evaluation of secretive-alpha and cunning-beta" in said
    written = page.read_text(encoding="utf-8")
    assert written.startswith("# Results")
    assert "`python -m studies compare-report study --output results.md`" in written
    wins = sum(read_study(study).left("Ada", pair) == "a" for pair in range(5))
    assert f"| Which video looks better? | **{20 * wins:.1f} %" in written
    assert "The left video was chosen in 100.0 %" in written
    assert run(["compare-report", str(study)]) == 0
    assert (study / "results.md").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["one"], "A study needs A, B and --prompts"),
        (["one", "two"], "A study needs A, B and --prompts"),
        (["--prepare-only"], "A study needs A, B and --prompts"),
        (["--steps", "3"], "A study needs A, B and --prompts"),
        (["--study", "nowhere"], "nowhere holds no study"),
        (["one", "two", "--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["{a}", "nowhere", "--prompts", "{prompts}"], "nowhere is not a folder"),
        (
            ["{a}", "{b}", "--prompts", "{prompts}", "--seed", "3"],
            "so a seed or settings",
        ),
        (
            ["one", "two", "--prompts", "{prompts}", "--scheduler", "eulr"],
            "Unknown scheduler 'eulr'",
        ),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(words, sentence, places, prompts, capsys):
    filled = [word.format(prompts=prompts, **places) for word in words]
    assert compare(*filled) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said

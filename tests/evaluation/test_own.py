"""The command `evaluate own`: few clips, with and without a judge trained on them."""

import json

import pytest
from tiny_model import FRAMES, make_tiny_pipeline

from magicvideo.cli import run
from magicvideo.evaluation.own import own_protocol


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    make_tiny_pipeline().save_pretrained(folder)
    return folder


def own(*words):
    return run(["evaluate", "own", *map(str, words)])


def test_few_clips_are_scored_and_skipped_scores_are_named(emoji, model, judge_folder, capsys):
    options = ["--data", emoji, "--model", model, "--judge", judge_folder, "--prompts", 3]
    assert own(*options) == 0
    written = capsys.readouterr()
    document = model.parent / "evaluation" / "own.json"
    assert written.out.splitlines()[-1] == str(document)
    assert "held-out captions" in written.out
    assert "training captions" in written.out
    assert "temporal" in written.out  # names of measures wrap on narrow terminals
    assert "The Frechet distance needs 20 clips" in written.err
    found = json.loads(document.read_text(encoding="utf-8"))
    assert found["protocol"]["num_frames"] == make_tiny_pipeline().capabilities.max_frames
    assert [len(one["scores"]) > 0 for one in found["sets"]] == [True] * 3
    names = {score["name"] for score in found["sets"][0]["scores"]}
    assert {"caption_first", "background_colour", "temporal_change"} <= names
    assert "frechet" not in names
    assert found["sets"][0]["scores"][0]["measured"]["count"] == 3


def test_no_page_is_written_by_default(emoji, model, judge_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--data", emoji, "--model", model, "--judge", judge_folder, "--prompts", 2]
    assert own(*options, "--output", tmp_path / "scores") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge", "scores"]
    assert own(*options, "--output", tmp_path / "scores", "--page", tmp_path / "page.md") == 0
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "`magicvideo evaluate own --data data --model model --judge judge --prompts 2`" in page


def test_a_judge_with_unknown_words_gives_no_caption_scores(prepared, judge):
    protocol, missing = own_protocol(prepared, make_tiny_pipeline(), judge, prompts=2)
    assert protocol.pool_size == 1
    assert any("train one on your clips with `magicvideo evaluate judge`" in one for one in missing)
    assert protocol.num_frames == make_tiny_pipeline().capabilities.max_frames >= FRAMES


def test_counts_follow_from_the_data(emoji, judge):
    protocol, missing = own_protocol(emoji, make_tiny_pipeline(), judge, prompts=50)
    assert [(one.split, one.prompts) for one in protocol.sets] == [("heldout", 3), ("train", 15)]
    assert (protocol.pool_size, protocol.reference_clips) == (6, 0)
    assert protocol.stride == max(1, min(4, 12 // (protocol.num_frames - 1)))
    assert len(missing) == 1

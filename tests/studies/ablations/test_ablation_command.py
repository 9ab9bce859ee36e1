"""The ablations through the command line: training, scores, page, and resuming."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.judge.network import Judge, save_judge
from magicvideo.evaluation.judge.training import judge_config
from studies.__main__ import run

PATH = "keyframes/output/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def judge_folder(prepared, tmp_path):
    judge = Judge(judge_config(ClipDataset(prepared, ("train", "heldout")))).eval()
    save_judge(judge, "{}", tmp_path / "judge")
    return tmp_path / "judge"


@pytest.fixture
def ablations(values, write, judge_folder, tmp_path):
    """A function that runs the command with more words, and returns its exit code."""
    values["experiments"].pop("convolutions")
    words = ["--output", str(tmp_path / "page.md"), "--judge", str(judge_folder)]
    return lambda *more: run(["ablations", str(write(values)), *words, *more])


def test_the_page_grows_with_the_runs_and_is_reproducible(ablations, tmp_path, capsys):
    page, runs = tmp_path / "page.md", tmp_path / "runs"
    assert ablations("--table-only") == 0
    assert "**Without scores yet**: both kinds (seed 3); no time (seed 3)." in page.read_text()
    assert not (tmp_path / "page-attention.svg").exists()
    assert not runs.exists()

    assert ablations("--shard", "1/2") == 0
    assert "**Without scores yet**: no time (seed 3)." in page.read_text()
    assert (tmp_path / "page-attention.svg").is_file()

    assert ablations() == 0
    text = page.read_text()
    assert "Without scores yet" not in text
    assert "](page-attention.svg)" in text
    folders = [runs / "attention" / name / "3" for name in ("both", "spatial")]
    scores = [scores_of(tmp_path, "attention", name) for name in ("both", "spatial")]
    assert [len(found["denoising"]["error"]) for found in scores] == [4, 4]
    assert scores[0]["denoising"]["clips"] == scores[1]["denoising"]["clips"]
    assert scores[0]["denoising"]["error"] != scores[1]["denoising"]["error"]
    assert set(scores[0]["videos"]) >= {"caption_first", "frechet", "temporal_change"}
    assert scores[0]["cost"]["parameters"] > scores[1]["cost"]["parameters"]
    # one image network for both, and denoisers of their own
    (shared,) = (path for path in (runs / "shared").iterdir() if path.is_dir())
    assert {path.name for path in shared.iterdir() if path.is_dir()} == {
        "autoencoder",
        "clip",
        "image",
    }
    names = [load_file(folder / PATH).keys() for folder in folders]
    assert any("temporal" in name for name in names[0] - names[1])

    # the scores are enough: what has them is not trained again
    shutil.rmtree(runs)
    capsys.readouterr()
    assert ablations() == 0
    assert capsys.readouterr().out.split() == [str(page)]
    assert {path.suffix for path in runs.rglob("*") if path.is_file()} <= {".lock"}
    assert page.read_text() == text


def scores_of(tmp_path, experiment, variant):
    return json.loads((tmp_path / "scores" / f"{experiment}-{variant}-3.json").read_text())


def test_decoders_are_trained_equally_and_scored_on_the_same_latents(
    ablations, values, decoders, tmp_path
):
    values["experiments"] = {"decoder": decoders}
    assert ablations() == 0
    frame, video = (scores_of(tmp_path, "decoder", name) for name in ("frame", "video"))
    assert [found["noise"] for found in frame["decoder"]] == [0.0, 0.2]
    for first, second in zip(frame["decoder"], video["decoder"], strict=True):
        for one, two in zip(first["measures"], second["measures"], strict=True):
            assert one["name"] == two["name"]
            assert one["first"] == two["first"]  # the decoder that both began as
            assert one["second"] != two["second"]
    assert frame["cost"]["training_gflops"] == pytest.approx(
        video["cost"]["training_gflops"], rel=1e-3
    )
    text = (tmp_path / "page.md").read_text()
    assert "**The paper**: Less dithering.\n\n**Here**: Nothing yet." in text
    assert "autoencoder 1 x 3, clip 1 x 3, video_vae 2 x 3." in text
    assert "| 0.2 | four | 1 | " in text


def test_upscalers_are_scored_by_scale_and_steps(ablations, values, upscalers, tmp_path):
    values["experiments"] = {"upscaler": upscalers}
    assert ablations() == 0
    for name, factor in (("two", 2), ("four", 4)):
        scores = scores_of(tmp_path, "upscaler", name)
        found = scores["upscaler"]
        assert (found["factor"], found["small_side"]) == (factor, 64 // factor)
        steps = {row["name"]: row["steps"] for row in found["methods"]}
        for method, count in steps.items():
            assert count is None or f" {count} step" in method
        assert set(steps.values()) == {1, 2, 3, None}  # 2 is the default
        assert scores["cost"]["updates"] == 2
    assert "| times 2 | 1 | " in (tmp_path / "page.md").read_text()


def test_scores_of_another_judge_do_not_count(ablations, decoders, values, tmp_path):
    values["experiments"] = {"decoder": decoders}
    assert ablations() == 0
    path = tmp_path / "scores" / "decoder-video-3.json"
    scores = json.loads(path.read_text())
    scores["identity"]["judge"] = "another"
    path.write_text(json.dumps(scores))
    assert ablations("--table-only") == 0
    assert "**Without scores yet**: four (seed 3)." in (tmp_path / "page.md").read_text()


def test_mistakes_are_answered_in_a_sentence(ablations, tmp_path, capsys):
    mistakes = {
        ("--shard", "3/2"): "not of the form K/N",
        ("--only", "atention"): "no experiment 'atention'",
        ("--judge", str(tmp_path / "nowhere")): "holds no judge",
    }
    for words, sentence in mistakes.items():
        assert ablations(*words) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert "Traceback" not in said
    assert not (tmp_path / "runs" / "shared").exists()

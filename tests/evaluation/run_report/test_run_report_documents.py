"""Reports of the documents of evaluations and benchmarks."""

import json
import re
import warnings
from itertools import pairwise

import pytest
import torch

from magicvideo.evaluation import report
from magicvideo.evaluation.benchmark import report as benchmark_report
from magicvideo.evaluation.benchmark.features import FeatureNetworks
from magicvideo.evaluation.benchmark.run import BenchmarkResult
from magicvideo.evaluation.benchmark.scores import MetricResult
from magicvideo.evaluation.confidence_intervals import Estimate
from magicvideo.evaluation.evaluator import EvaluationResult, SetResult
from magicvideo.evaluation.networks.extractors import I3D, locate_file
from magicvideo.evaluation.protocol import SweepPoint, TargetRange, read_any_protocol, read_protocol
from magicvideo.evaluation.provenance import provenance
from magicvideo.evaluation.run_report import plots
from magicvideo.evaluation.run_report.page import as_html
from magicvideo.evaluation.run_report.results import read_results
from magicvideo.evaluation.run_report.run import read_run
from magicvideo.evaluation.scores import Score

CAVEATS = ["7 of 10100 videos", "6 of 9537 real clips", "prompts of its own"]
JUDGE_HASH, OTHER_HASH = "1dea" * 16, "decade" * 10 + "0000"


@pytest.fixture
def i3d(tmp_path):
    """A function that returns I3D of `i3d.pt` in a folder of its own, with weights of a seed."""

    def i3d(seed):
        path = tmp_path / f"networks-{seed}" / "i3d.pt"
        path.parent.mkdir()
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(torch.nn.Linear(2, 3)).save(str(path))
        return I3D(locate_file(str(path), "I3D"), torch.device("cpu"))

    return i3d


@pytest.fixture
def benchmark(judge):
    """A function that returns the document of a benchmark: a distance and a mean."""

    def benchmark(
        steps=5, caveats=(), extrapolated=None, judge_hash=JUDGE_HASH, i3d=None, device="cpu"
    ):
        hashes = benchmark_report.network_identities(
            FeatureNetworks(judge=judge, i3d=i3d), judge_hash
        )
        distance = MetricResult(
            name="distance",
            network="none",  # so that results of all networks stand in one panel
            measured=Estimate(steps / 7, 7, 0.0, 3.0),
            real=Estimate(412.5, 3),
            extrapolated=extrapolated,
        )
        mean = MetricResult(
            name="change", network="none", measured=Estimate(2.5, 7), real=Estimate(2.25, 6)
        )
        result = BenchmarkResult(
            benchmark=SweepPoint(steps=steps).of(read_any_protocol("ucf101-100-per-class")),
            model="tiny",
            metrics=[distance, mean],
            generated={"prompts_sha256": "ba5e"},
            real={"pixels_sha256": "facade"},
            networks={},
            caveats=list(caveats),
        )
        facts = provenance({"model": "c0ffee", **hashes}, {}, device)
        return json.loads(benchmark_report.as_json(result, facts))

    return benchmark


def evaluation(steps=5, frames=8):
    """The document of an evaluation: a distance with infinite samples, and a set without."""

    def score(name, extrapolated=None, real_extrapolated=None):
        return Score(
            name=name,
            network="none",
            measured=Estimate(steps / 7, 61),
            real=Estimate(0.0625, 59),
            chance=Estimate(5.5, 53),
            chance_is="a still background",
            extrapolated=extrapolated,
            real_extrapolated=real_extrapolated,
        )

    captions = SetResult(
        name="captions",
        scores=[score("frechet", 0.375, -0.03125), score("flicker")],
        targets={"flicker": TargetRange(at_most=2)},
    )
    result = EvaluationResult(
        protocol=SweepPoint(steps=steps).of(read_protocol("emoji-heldout")),
        sets=[captions, SetResult(name="autoencoder", scores=[score("psnr")], targets={})],
        identity={
            "judge": JUDGE_HASH,
            "judge preprocessing": {"frames": frames, "layer": "features"},
        },
    )
    return json.loads(report.as_json(result))


@pytest.fixture
def page(tmp_path):
    """A function that returns the page of some documents."""

    def page(*documents):
        for place, document in enumerate(documents):
            (tmp_path / f"{place}.json").write_text(json.dumps(document), encoding="utf-8")
        return as_html(read_run(tmp_path, []), 0)

    return page


def cells(text, measure):
    """The cells of a measure's row by their columns."""
    tables = re.findall(r"<table>.*?</table>", text, re.DOTALL)
    (table,) = (table for table in tables if f'<th scope="row">{measure}</th><td>' in table)
    _, *columns = re.findall(r'<th scope="col">(.*?)</th>', table)
    (row,) = re.findall(rf'<th scope="row">{measure}</th>(.*)</tr>', table)
    return dict(zip(columns, re.findall("<td>(.*?)</td>", row), strict=True))


def points(*counts):
    """Steps and the measured value that documents have at them."""
    return [(steps, steps / 7) for steps in counts]


def test_marks_stand_above_the_table_and_in_the_label_of_the_plot(page, benchmark):
    text = page(benchmark(caveats=CAVEATS), benchmark())
    sentence = f"<p><strong>Not the whole protocol:</strong> {'; '.join(CAVEATS)}.</p>"
    marked, whole = text.index("(0.json)</h3>"), text.index("(1.json)</h3>")
    assert text.count("Not the whole protocol") == 1
    assert marked < text.index(sentence) < text.index("<table>", marked) < whole
    plot = text[: text.index("</svg>")]
    shown = " ".join(re.findall("<text[^>]*>(.*?)</text>", plot))
    assert f"tiny 0.json {'; '.join(CAVEATS)} tiny 1.json distance" in shown


def test_labels_with_marks_do_not_touch(benchmark, tmp_path, monkeypatch):
    path, figures = tmp_path / "marked.json", []
    path.write_text(json.dumps(benchmark(caveats=CAVEATS)), encoding="utf-8")
    monkeypatch.setattr(plots, "_svg", lambda figure: figures.append(figure) or "")
    plots.scores_plot([read_results(path)] * 4)
    (figure,) = figures
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [label.get_window_extent() for label in axis.get_yticklabels()]
        assert len(boxes) == 4
        for upper, lower in pairwise(boxes):
            assert lower.y1 < upper.y0


def test_scores_of_real_clips_have_their_own_count(page, benchmark):
    text = page(benchmark())
    assert cells(text, "distance")["n"] == "7"
    assert cells(text, "distance")["real clips [n]"] == "412.5 [3]"
    assert cells(text, "change")["real clips [n]"] == "2.25 [6]"


def test_a_distance_has_its_value_for_endless_samples(page, benchmark):
    text = page(benchmark(extrapolated=-17.25))
    assert cells(text, "distance")["infinite samples"] == "-17.25"
    assert cells(text, "change")["infinite samples"] == ""
    assert "Infinite samples: a line over 1/n, read at zero." in text


def test_the_extrapolated_score_is_shown_with_that_of_real_clips(page):
    text = page(evaluation(steps=14))
    assert cells(text, "frechet") == {
        "n": "61",
        "measured [95 %]": "2",
        "real clips [n]": "0.0625 [59]",
        "infinite samples": "0.375 (real clips -0.03125)",
        "chance": "5.5 (a still background)",
        "target": "",
    }
    assert cells(text, "flicker")["infinite samples"] == ""
    assert cells(text, "flicker")["target"] == "met"
    assert "infinite samples" not in cells(text, "psnr")


def test_without_extrapolated_scores_there_is_no_column_for_them(page, benchmark):
    assert "ndless samples" not in page(benchmark())


def test_benchmarks_of_two_judges_are_two_lines(lines, benchmark):
    assert lines([benchmark(20), benchmark(5), benchmark(10, judge_hash=OTHER_HASH)]) == {
        f"tiny, judge hash {JUDGE_HASH[:24]}": points(5, 20),
        f"tiny, judge hash {OTHER_HASH[:24]}": points(10),
    }


def test_benchmarks_of_two_files_of_one_name_are_two_lines(lines, benchmark, i3d):
    first, second = i3d(1), i3d(2)
    documents = [benchmark(20, i3d=first), benchmark(5, i3d=first), benchmark(10, i3d=second)]
    assert lines(documents) == {
        f"tiny, I3D, i3d.pt hash {first.located.sha256[:24]}": points(5, 20),
        f"tiny, I3D, i3d.pt hash {second.located.sha256[:24]}": points(10),
    }


def test_benchmarks_with_and_without_a_network_are_two_lines(lines, benchmark, i3d):
    network = i3d(1)
    assert lines([benchmark(20), benchmark(5), benchmark(10, i3d=network)]) == {
        "tiny": points(5, 20),
        f"tiny, I3D, i3d.pt hash {network.located.sha256[:24]}": points(10),
    }


def test_results_of_other_devices_versions_and_threads_share_a_line(lines, benchmark):
    here, elsewhere = benchmark(5), benchmark(20, device="cuda")
    elsewhere["identity"]["versions"]["torch"] += ".1"
    elsewhere["identity"]["threads"] += 1
    assert lines([here, elsewhere]) == {"tiny": points(5, 20)}


def test_evaluations_with_other_judge_preprocessing_are_two_lines(lines):
    documents = [evaluation(20), evaluation(5), evaluation(10, frames=16)]
    found = {label: line for label, line in lines(documents).items() if "captions" in label}
    assert found == {
        "captions, judge preprocessing.frames 8": points(5, 20),
        "captions, judge preprocessing.frames 16": points(10),
    }

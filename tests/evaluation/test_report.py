import json
import math

import pytest

from magicvideo.evaluation.confidence_intervals import Estimate
from magicvideo.evaluation.evaluator import EvaluationResult, SetResult
from magicvideo.evaluation.protocol import TargetRange, read_protocol
from magicvideo.evaluation.report import as_json, as_markdown
from magicvideo.evaluation.run_report import plots
from magicvideo.evaluation.run_report.results import read_results
from magicvideo.evaluation.scores import Score


def score(name, value, network="none", extrapolated=None, **bounds):
    return Score(
        name=name,
        network=network,
        measured=Estimate(value, 100, **bounds),
        real=Estimate(0.97, 100),
        chance=Estimate(0.01, 100),
        chance_is="prompts shuffled",
        extrapolated=extrapolated,
        real_extrapolated=extrapolated and extrapolated / 2,
    )


@pytest.fixture
def result():
    shares = SetResult(
        name="training captions",
        scores=[
            score("caption_first", 0.62, "emoji judge, 64 features", low=0.52, high=0.71),
            score("skin_tone", 0.5),
            score("flicker", math.inf),
            score("caption_median_rank", 2.5, low=2.0, high=4.0),
            score("frechet", 0.06, "emoji judge, 64 features", 0.03, low=0.04, high=0.08),
        ],
        targets={
            "caption_first": TargetRange(at_least=0.6),
            "skin_tone": TargetRange(at_least=0.7),
        },
    )
    return EvaluationResult(
        protocol=read_protocol("emoji-heldout"),
        sets=[shares],
        identity={"model": "abc", "versions": {"torch": "2.13.0"}},
    )


def test_a_row_has_the_value_its_interval_and_whether_the_target_is_met(result):
    rows = as_markdown(result, "magicvideo evaluate x").splitlines()
    expected = (
        "| own caption first among 100 | emoji judge, 64 features | 100 "
        "| **62.0 %** [52.0 %, 71.0 %] | 97.0 % |  "
        "| 1.0 % (prompts shuffled) | at least 60.0 % | met |"
    )
    assert expected in rows
    assert any("| none | 100 | **2.50** [2.00, 4.00] | 0.97 |  |" in row for row in rows)
    distance = (
        "| Frechet distance | emoji judge, 64 features | 100 | **0.0600** [0.0400, 0.0800] "
        "| 0.9700 | 0.0300 (0.0150) | 0.0100 (prompts shuffled) |  |  |"
    )
    assert distance in rows
    assert any(row.startswith("| skin tone |") and row.endswith("| not met |") for row in rows)
    assert "| model | abc |" in rows
    assert "`magicvideo evaluate x`" in rows


def test_json_contains_the_protocol_and_no_infinity(result):
    document = json.loads(as_json(result))
    assert document["protocol"] == result.protocol.model_dump(mode="json")
    assert document["identity"]["versions"] == {"torch": "2.13.0"}
    first, _, flicker, _, distance = document["sets"][0]["scores"]
    assert (first["network"], flicker["network"]) == ("emoji judge, 64 features", "none")
    assert (distance["extrapolated"], distance["real_extrapolated"]) == (0.03, 0.015)
    assert first["measured"] == {"value": 0.62, "count": 100, "low": 0.52, "high": 0.71}
    assert first["met"] is True
    assert flicker["measured"]["value"] is None
    assert flicker["met"] is None


def test_a_report_names_the_network_and_draws_the_interval(result, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text(as_json(result), encoding="utf-8")
    found = read_results(path)
    names = [score.name for score in found.sets[0].scores]
    assert names[0] == "caption_first, emoji judge, 64 features"
    assert names[1] == "skin_tone"  # of no network here
    assert names[-1] == "frechet, emoji judge, 64 features"
    figures = []
    monkeypatch.setattr(plots, "_svg", lambda figure: figures.append(figure) or "")
    plots.scores_plot([found])
    panel = figures[0].axes[-1]
    assert panel.get_title() == "frechet, emoji judge, 64\nfeatures"
    (bar,) = panel.collections
    assert [segment.tolist() for segment in bar.get_segments()] == [[[0.04, 0], [0.08, 0]]]

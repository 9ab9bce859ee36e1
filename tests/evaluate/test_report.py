import json
import math

import pytest

from magicvideo.evaluate.intervals import Estimate
from magicvideo.evaluate.protocol import Target, read_protocol
from magicvideo.evaluate.report import as_json, as_markdown
from magicvideo.evaluate.run import Result, SetResult
from magicvideo.evaluate.scores import Score


def score(name, value, **bounds):
    return Score(
        name=name,
        measured=Estimate(value, 100, **bounds),
        real=Estimate(0.97, 100),
        chance=Estimate(0.01, 100),
        chance_is="prompts shuffled",
    )


@pytest.fixture
def result():
    shares = SetResult(
        name="training captions",
        scores=[
            score("caption_first", 0.62, low=0.52, high=0.71),
            score("skin_tone", 0.5),
            score("flicker", math.inf),
        ],
        targets={"caption_first": Target(at_least=0.6), "skin_tone": Target(at_least=0.7)},
    )
    return Result(
        protocol=read_protocol("emoji-heldout"),
        sets=[shares],
        identity={"model": "abc", "versions": {"torch": "2.13.0"}},
    )


def test_a_row_tells_the_number_its_bounds_and_whether_it_will_do(result):
    rows = as_markdown(result, "magicvideo evaluate x").splitlines()
    expected = (
        "| own caption first among 100 | 100 | **62.0 %** [52.0 %, 71.0 %] | 97.0 % "
        "| 1.0 % (prompts shuffled) | at least 60.0 % | met |"
    )
    assert expected in rows
    assert any(row.startswith("| skin tone |") and row.endswith("| not met |") for row in rows)
    assert "| model | abc |" in rows
    assert "`magicvideo evaluate x`" in rows


def test_json_repeats_the_protocol_and_holds_no_infinity(result):
    document = json.loads(as_json(result))
    assert document["protocol"] == result.protocol.model_dump(mode="json")
    assert document["identity"]["versions"] == {"torch": "2.13.0"}
    first, _, flicker = document["sets"][0]["scores"]
    assert first["measured"] == {"value": 0.62, "count": 100, "low": 0.52, "high": 0.71}
    assert first["met"] is True
    assert flicker["measured"]["value"] is None
    assert flicker["met"] is None

"""Results of evaluations, as `magicvideo evaluate` writes them."""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from magicvideo.errors import UserError
from magicvideo.limits import parse_json

_NO_NETWORK = "none"  # what scores say that pixels are enough for


class _Lenient(BaseModel):
    # a report shows what it knows; other versions may write more
    model_config = ConfigDict(frozen=True, extra="ignore")


class Measured(_Lenient):
    """A number with its 95 % interval, if it has one; a number that is not finite is None."""

    value: float | None
    count: int | None = None
    low: float | None = None
    high: float | None = None


class Score(_Lenient):
    """One measure of a set, next to what real clips and chance get."""

    name: str
    """With the network whose features it is computed on, if there is one."""
    measured: Measured
    real: Measured | None = None
    chance: Measured | None = None
    chance_is: str = "chance"
    extrapolated: float | None = None
    """A distance with infinite samples, if asked for."""
    real_extrapolated: float | None = None
    """That of the real clips, where the evaluation has it."""
    met: bool | None = None


class ScoreSet(_Lenient):
    """The scores of one set of prompts."""

    name: str
    scores: list[Score]


class Protocol(BaseModel):
    """What decided the numbers; every value is shown, and some are plotted against."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    num_inference_steps: int | None = None
    guidance_scale: float | None = None


class Results(_Lenient):
    """One file of results."""

    file: str
    protocol: Protocol
    sets: list[ScoreSet]
    caveats: list[str] = []
    """What makes this less than the whole protocol; empty where nothing does."""
    identity: dict[str, Any] = {}


def read_results(path: Path) -> Results:
    """Read a file of results.

    Raises:
        UserError: If it is missing or something else.
    """
    try:
        document: Any = parse_json(path.read_text(encoding="utf-8"))
        return Results.model_validate(_one_form(document) | {"file": path.name})
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} holds no results of an evaluation ({reason}); `magicvideo evaluate PROTOCOL` "
            "writes them."
        ) from None


def find_results(folder: Path, leave_out: str) -> list[Results]:
    """Return the results among the JSON files of a folder; other files are ignored."""
    return [
        read_results(path)
        for path in sorted(folder.glob("*.json"))
        if path.name != leave_out and _looks_like_results(path)
    ]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return settings as one level of text, with dots between the levels."""
    rows = (
        flatten(value, f"{prefix}{name}.").items()
        if isinstance(value, dict)
        else [(f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value))]
        for name, value in settings.items()
    )
    return dict(chain.from_iterable(rows))


def humanize(name: str) -> str:
    """Return the name of a measure or setting for display."""
    return name.replace("_", " ")


def _looks_like_results(path: Path) -> bool:
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(document, dict) or "protocol" not in document:
        return False
    return "sets" in document or "scores" in document


def _one_form(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with sets whose scores are named with their networks.

    A benchmark has the scores of one set alone. The settings of its generation and the hashes of
    its clips and prompts stand in parts of their own, from where they are lifted.
    """
    if "sets" not in document and "scores" in document:
        document = _with_one_set(document)
    return document | {
        "sets": [
            found | {"scores": [_with_network(score) for score in found["scores"]]}
            for found in document["sets"]
        ]
    }


def _with_one_set(document: dict[str, Any]) -> dict[str, Any]:
    protocol = dict(document["protocol"])
    generation = protocol.pop("generation", {})
    hashes = {
        "data": document.get("real", {}).get("pixels_sha256"),
        "prompts": document.get("generated", {}).get("prompts_sha256"),
    }
    name = document.get("model") or "generated videos"
    return document | {
        "protocol": protocol | generation,
        "identity": document.get("identity", {}) | hashes,
        "sets": [{"name": name, "scores": document["scores"]}],
    }


def _with_network(score: dict[str, Any]) -> dict[str, Any]:
    network = score.get("network", _NO_NETWORK)
    return score if network == _NO_NETWORK else score | {"name": f"{score['name']}, {network}"}

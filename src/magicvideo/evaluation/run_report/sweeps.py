"""Which results belong on one line: those that differ in one setting and in nothing else."""

from collections.abc import Sequence
from typing import NamedTuple

from magicvideo.evaluation.run_report.results import Measured, Results, Score, flatten, humanize

_LAST_DIGITS = ("device", "versions", "threads")  # all that these move of a score
_SET = "set"
_LETTERS = 24  # of a value in a label


class Row(NamedTuple):
    """One score of one set of a file."""

    set_name: str
    results: Results
    score: Score


class SweepCurve(NamedTuple):
    """Scores by the value of the setting, in its order."""

    label: str
    points: list[tuple[float, Measured]]


def sweep_curves(rows: Sequence[Row], setting: str) -> list[SweepCurve]:
    """Return the lines that some scores make.

    Args:
        rows: Of one measure; all have a value of the setting.
        setting: The attribute of the protocol that differs along a line.

    Returns:
        Lines with labels of the set and of whatever tells one line from another.
    """
    facts = [_facts(row, setting) for row in rows]
    names = dict.fromkeys(name for found in facts for name in found)
    telling = [name for name in names if len({found.get(name) for found in facts}) > 1]
    lines: dict[frozenset[tuple[str, str]], SweepCurve] = {}
    for row, found in zip(rows, facts, strict=True):
        line = lines.setdefault(frozenset(found.items()), SweepCurve(_label(found, telling), []))
        line.points.append((getattr(row.results.protocol, setting), row.score.measured))
    for line in lines.values():
        line.points.sort(key=lambda point: point[0])
    return list(lines.values())


def _facts(row: Row, setting: str) -> dict[str, str]:
    """Return all that decides a score beside the setting."""
    protocol = row.results.protocol.model_dump(mode="json", exclude={setting, "about"})
    identity = {
        # `hash` keeps `data` and `prompts` apart from those of the protocol
        name if isinstance(value, dict) else f"{name} hash": value
        for name, value in row.results.identity.items()
        if name not in _LAST_DIGITS
    }
    return {_SET: row.set_name} | flatten(
        {"protocol": protocol.pop("name"), **protocol, **identity}
    )


def _label(facts: dict[str, str], telling: Sequence[str]) -> str:
    told = [
        f"{humanize(name)} {facts[name].removesuffix('.0')[:_LETTERS]}"
        for name in telling
        if name != _SET and name in facts
    ]
    return ", ".join([facts[_SET], *told])

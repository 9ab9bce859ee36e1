"""The plots of a run's report."""

import io
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from magicvideo.evaluation.run_report.results import Measured, Results, Score, flatten, humanize
from magicvideo.evaluation.run_report.run import Series, StageRun

_MOST = 400
_SHARE = 50


def minmax_downsample(series: Series) -> Series:
    """Return the minimum and maximum of each of 400 intervals, so that no peak is lost."""
    if len(series.values) <= 2 * _MOST:
        return series
    edges = np.linspace(0, len(series.values), _MOST + 1).astype(int)
    places: list[int] = []
    for first, last in pairwise(edges):
        part = series.values[first:last]
        places += sorted({first + int(part.argmin()), first + int(part.argmax())})
    return Series(series.steps[places], series.values[places])


def smoothed(series: Series) -> Series:
    """Return the moving average over a fiftieth of the log, at 400 places or fewer."""
    window = np.ones(1 + 2 * (len(series.values) // (2 * _SHARE)))
    # at the ends the window is cut, and so is what it is divided by
    sums = np.convolve(series.values, window, mode="same")
    counts = np.convolve(np.ones_like(series.values), window, mode="same")
    places = np.unique(np.linspace(0, len(sums) - 1, min(_MOST, len(sums))).round().astype(int))
    return Series(series.steps[places], (sums / counts)[places])


def start_end_mean(series: Series) -> tuple[float, float]:
    """Return the mean of the first and of the last fiftieth of a log."""
    count = max(1, len(series.values) // _SHARE)
    return float(series.values[:count].mean()), float(series.values[-count:].mean())


_LAST_DIGITS = ("device", "versions", "threads")  # all that these move of a score
_SET = "set"
_LABEL_LETTERS = 24  # of a value in a label


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
    """Return the curves of scores over a setting.

    Args:
        rows: Of one measure; all have a value of the setting.
        setting: The attribute of the protocol that differs along a line.

    Returns:
        Lines with labels of the set and of whatever distinguishes the lines.
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
    """Return all that a score depends on besides the setting."""
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
        f"{humanize(name)} {facts[name].removesuffix('.0')[:_LABEL_LETTERS]}"
        for name in telling
        if name != _SET and name in facts
    ]
    return ", ".join([facts[_SET], *told])


_COLUMNS, _WIDTH, _HEIGHT = 3, 3.4, 2.3  # inches
_RAW, _SMOOTH, _REAL, _CHANCE = "#b9c9dd", "#12438c", "#2a7f3f", "#a05a00"
_LETTERS = 24  # of a line of a label
_LINE = 0.14  # inches of a line of a label, with what parts it from the next
_NARROW, _BROAD = 30, 40  # letters of a line of a title, with and without labels next to the plot
_WIDE = 20.0  # a spread of values from which on the axis is logarithmic
_LAST = ("gradient_norm", "learning_rate", "samples a second", "steps a second")
_STYLE: dict[Any, Any] = {  # matplotlib 3.11 has a type of its own for names, 3.10 has not
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "svg.fonttype": "none",  # text stays text, which can be searched and read aloud
    "svg.hashsalt": "magicvideo",
}


def stage_plot(stage: StageRun) -> str:
    """Return the plot of all values that a stage logged, the losses first."""
    names = sorted(stage.series, key=lambda name: (name in _LAST, name != "loss", name))
    with mpl.rc_context(_STYLE):
        figure, axes = _grid(len(names))
        for axis, name in zip(axes, names, strict=True):
            _curve(axis, name, stage.series[name])
        return _svg(figure)


def scores_plot(results: Sequence[Results]) -> str:
    """Return the plot of all measures with intervals: one panel per measure, one row per set."""
    panels = _by_measure(results)
    lines = max(len(_row_label(row)) for rows in panels.values() for row in rows)
    most = max(map(len, panels.values()))
    with mpl.rc_context(_STYLE):
        figure, axes = _grid(len(panels), height=0.9 + most * max(0.3, lines * _LINE))
        for axis, (name, rows) in zip(axes, panels.items(), strict=True):
            axis.set_title(_folded(humanize(name), _NARROW))
            for place, row in enumerate(rows):
                _dot(axis, place, row.score)
            axis.set_yticks(range(len(rows)), ["\n".join(_row_label(row)) for row in rows])
            axis.set_ylim(len(rows) - 0.5, -0.5)
        return _svg(figure)


def sweep_plot(results: Sequence[Results], setting: str) -> str | None:
    """Return every measure against a setting of the protocol, or None where it does not vary.

    Args:
        results: One file for each value of the setting.
        setting: `num_inference_steps` or `guidance_scale`.
    """
    panels = {
        name: [row for row in rows if getattr(row.results.protocol, setting) is not None]
        for name, rows in _by_measure(results).items()
    }
    panels = {
        name: rows
        for name, rows in panels.items()
        if len({getattr(row.results.protocol, setting) for row in rows}) > 1
    }
    if not panels:
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _grid(len(panels))
        for axis, (name, rows) in zip(axes, panels.items(), strict=True):
            axis.set_title(_folded(f"{humanize(name)} by {humanize(setting)}", _BROAD))
            _lines(axis, rows, setting)
        return _svg(figure)


def _by_measure(results: Iterable[Results]) -> dict[str, list[Row]]:
    """Return, for each measure, its scores that have a value."""
    panels: dict[str, list[Row]] = {}
    for found in results:
        for score_set in found.sets:
            for score in score_set.scores:
                if score.measured.value is not None:
                    panels.setdefault(score.name, []).append(Row(score_set.name, found, score))
    return panels


def _row_label(row: Row) -> list[str]:
    """Return the lines of a row's label: set, file and caveats."""
    caveats = "; ".join(row.results.caveats)
    return [*wrap(row.set_name, _LETTERS), row.results.file, *wrap(caveats, _LETTERS)]


def _folded(text: str, letters: int) -> str:
    return "\n".join(wrap(text, letters))


def _grid(count: int, height: float = _HEIGHT) -> tuple[Figure, list[Axes]]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * _WIDTH, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def _curve(axis: Axes, name: str, series: Series) -> None:
    raw, smooth = minmax_downsample(series), smoothed(series)
    axis.set_title(humanize(name))
    axis.plot(raw.steps, raw.values, color=_RAW, linewidth=0.7)
    axis.plot(smooth.steps, smooth.values, color=_SMOOTH, linewidth=1.4)
    low, high = np.quantile(series.values, [0.01, 0.99])
    if name not in _LAST and series.values.min() > 0 and high > _WIDE * low:
        axis.set_yscale("log")


def _dot(axis: Axes, place: int, score: Score) -> None:
    for other, colour, marker in ((score.real, _REAL, "|"), (score.chance, _CHANCE, "x")):
        if other is not None and other.value is not None:
            axis.plot([other.value], [place], marker, color=colour, markersize=8)
    assert score.measured.value is not None
    axis.errorbar(
        [score.measured.value], [place], xerr=_arms(score.measured), fmt="o", color=_SMOOTH
    )


def _lines(axis: Axes, rows: Sequence[Row], setting: str) -> None:
    """Draw a line through the scores that differ in the setting alone."""
    for label, points in sweep_curves(rows, setting):
        arms = np.concatenate([_arms(measured) for _, measured in points], axis=1)
        places, values = zip(*((x, measured.value) for x, measured in points), strict=True)
        axis.errorbar(places, values, yerr=arms, marker="o", markersize=3, label=label)
    axis.legend(fontsize=6, frameon=False)


def _arms(measured: Measured) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Return the distances from the value to both ends of its interval."""
    value = measured.value or 0.0
    low = value if measured.low is None else measured.low
    high = value if measured.high is None else measured.high
    # a bootstrapped interval of few samples need not hold its own value
    return np.array([[max(0.0, value - low)], [max(0.0, high - value)]])


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    # several plots stand in one page, and nothing refers to the names of groups, all alike in them
    return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])

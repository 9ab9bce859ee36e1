"""The report of a run as one self-contained HTML file."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from magicvideo.errors import UserError
from magicvideo.evaluation.run_report.plots import (
    scores_plot,
    stage_plot,
    start_end_mean,
    sweep_plot,
)
from magicvideo.evaluation.run_report.results import Measured, Results, Score, flatten, humanize
from magicvideo.evaluation.run_report.run import Run, StageRun

_PNG = b"\x89PNG\r\n\x1a\n"
_SWEPT = ("num_inference_steps", "guidance_scale")


def as_html(run: Run, num_sheets: int) -> str:
    """Return the page with embedded plots and images; the same run gives the same text.

    Args:
        run: What to show.
        num_sheets: Sample sheets shown of each stage, evenly spaced from the first to the last.

    Raises:
        UserError: If a sheet is not a PNG file.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(
        name=run.name,
        settings=flatten(run.settings),
        hours=_duration(sum((stage.seconds for stage in run.stages), start=0.0)),
        stages=[_stage(stage, num_sheets) for stage in run.stages],
        results=[_results(found) for found in run.results],
        scores=scores_plot(run.results) if _has_scores(run.results) else None,
        sweeps=list(filter(None, (sweep_plot(run.results, name) for name in _SWEPT))),
        sheets=[_sheet(path) for path in run.sheets],
    )


def _has_scores(results: Sequence[Results]) -> bool:
    scores = (score for found in results for part in found.sets for score in part.scores)
    return any(score.measured.value is not None for score in scores)


def _stage(stage: StageRun, num_sheets: int) -> dict[str, Any]:
    shown = np.linspace(0, len(stage.sheets) - 1, min(num_sheets, len(stage.sheets)))
    asked = stage.settings.get("steps")
    return {
        "name": stage.name,
        "facts": {
            "steps": f"{stage.steps:,}" + ("" if asked is None else f" of {asked:,}"),
            "time in steps": _duration(stage.seconds),
        },
        "ends": {
            humanize(name): tuple(map(_number, start_end_mean(series)))
            for name, series in stage.series.items()
            if name != "learning_rate"
        },
        "plot": stage_plot(stage),
        "sheets": [_sheet(stage.sheets[place]) for place in shown.round().astype(int)],
        "num_sheets": len(stage.sheets),
        "settings": flatten(stage.settings),
    }


def _results(found: Results) -> dict[str, Any]:
    protocol = found.protocol.model_dump(mode="json")
    return {
        "file": found.file,
        "name": found.protocol.name,
        "about": protocol.pop("about", ""),
        "caveats": "; ".join(found.caveats),
        "sets": [
            {
                "name": part.name,
                "rows": [_row(score) for score in part.scores],
                "has_endless": any(score.extrapolated is not None for score in part.scores),
            }
            for part in found.sets
        ],
        "settings": flatten(protocol) | flatten(found.identity, "depends on: "),
    }


def _row(score: Score) -> dict[str, Any]:
    return {
        "name": humanize(score.name),
        "count": "" if score.measured.count is None else score.measured.count,
        "measured": _with_interval(score.measured),
        "real": _with_count(score.real),
        "endless": _endless(score),
        "chance": _value(score.chance),
        "chance_is": score.chance_is,
        "met": {True: "met", False: "not met", None: ""}[score.met],
    }


def _sheet(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise UserError(f"{path} is not a PNG file; remove it from the run's folder.")
    encoded = base64.b64encode(content).decode("ascii")
    return {"name": path.stem, "uri": f"data:image/png;base64,{encoded}"}


def _with_interval(measured: Measured) -> str:
    if measured.low is None or measured.high is None:
        return _value(measured)
    return f"{_value(measured)} [{_number(measured.low)}, {_number(measured.high)}]"


def _with_count(measured: Measured | None) -> str:
    if measured is None or measured.count is None:
        return _value(measured)
    return f"{_value(measured)} [{measured.count}]"


def _endless(score: Score) -> str:
    if score.extrapolated is None:
        return ""
    ours, real = _number(score.extrapolated), score.real_extrapolated
    return ours if real is None else f"{ours} (real clips {_number(real)})"


def _value(measured: Measured | None) -> str:
    if measured is None:
        return ""
    return "not defined" if measured.value is None else _number(measured.value)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not defined"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.1f} s" if seconds < 60 else f"{minutes // 60} h {minutes % 60:02} min"

"""A training run on disk: logs, samples and settings of its stages."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from magicvideo.errors import UserError
from magicvideo.evaluation.run_report.results import Results, find_results, read_results
from magicvideo.limits import parse_json

# what training calls its files; it cannot be imported from here
_LOG, _SAMPLES, _RECIPE = "log.jsonl", "samples", "recipe.json"
_SECONDS, _SPEED = "seconds", "samples a second"


@dataclass(frozen=True)
class Series:
    """The finite values that a stage logged under one name, in the order of its steps."""

    steps: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage of a run."""

    name: str
    series: Mapping[str, Series]
    """By the names of the log, its seconds turned into speed."""
    settings: Mapping[str, Any]
    seconds: float
    """Time in steps; that of samples and checkpoints is not logged."""
    sheets: list[Path]
    """Sample sheets, in the order of their steps."""

    @property
    def steps(self) -> int:
        """Return the number of the last step."""
        return max(int(series.steps[-1]) for series in self.series.values())


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a report shows."""

    name: str
    settings: Mapping[str, Any]
    """Settings of the recipe that belong to no stage."""
    stages: list[StageRun]
    results: list[Results]
    sheets: list[Path]
    """Pictures next to the stages, such as contact sheets of generated videos."""


def read_run(folder: Path, results: list[Path]) -> Run:
    """Read the folder of a run, or one that holds results alone.

    Args:
        folder: What `magicvideo train` wrote; JSON results and PNG sheets in it are taken, too.
        results: Further files of results.

    Raises:
        UserError: If there is nothing to report, or a file is not what it should be.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder of a run, such as runs/emoji.")
    recipe = _read_recipe(folder / _RECIPE)
    found = [path.parent for path in folder.glob(f"*/{_LOG}")]
    order = list(recipe)
    found.sort(key=lambda path: (order.index(path.name) if path.name in recipe else -1, path.name))
    read = [_read_stage(path, recipe.get(path.name, {})) for path in found]
    run = Run(
        name=folder.resolve().name,
        settings={name: value for name, value in recipe.items() if not _is_stage(value)},
        stages=[stage for stage in read if stage.series],
        results=find_results(folder, leave_out=_RECIPE) + [read_results(path) for path in results],
        sheets=sorted(folder.glob("*.png")),
    )
    if not run.stages and not run.results:
        raise UserError(
            f"{folder} holds no run and no results; name a folder in which `magicvideo train` has "
            f"left STAGE/{_LOG}, or give results with --results."
        )
    return run


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    if not isinstance(recipe, dict):
        raise UserError(f"{path} is damaged: it holds no settings.")
    return recipe


def _is_stage(value: object) -> bool:
    return isinstance(value, dict) and "steps" in value and "batch_size" in value


def _read_stage(folder: Path, settings: Mapping[str, Any]) -> StageRun:
    logged = _read_log(folder / _LOG)
    seconds = logged.pop(_SECONDS, None)
    if seconds is not None:
        samples = settings.get("batch_size", 1) * settings.get("gradient_accumulation_steps", 1)
        name = _SPEED if "batch_size" in settings else "steps a second"
        speed = samples / np.maximum(seconds.values, 1e-9)
        logged[name] = Series(seconds.steps, speed)
    return StageRun(
        name=folder.name,
        series=logged,
        settings=settings,
        seconds=0.0 if seconds is None else float(seconds.values.sum()),
        sheets=sorted((folder / _SAMPLES).glob("*.png")),
    )


def _read_log(path: Path) -> dict[str, Series]:
    """Return the logged values by name; a truncated last line is ignored."""
    collected: dict[str, tuple[list[int], list[float]]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values: Any = parse_json(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                steps, found = collected.setdefault(name, ([], []))
                steps.append(step)
                found.append(float(value))
    return {
        name: Series(np.array(steps), np.array(found)) for name, (steps, found) in collected.items()
    }

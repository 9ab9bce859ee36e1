"""Progress of a run: a live progress bar on a terminal, otherwise one line per minute."""

import logging
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LEFT_OUT = ("seconds", "learning_rate")


@runtime_checkable
class Reporter(AbstractContextManager["Reporter"], Protocol):
    """Receives progress and messages of a run. Only the main process has one."""

    def start_run(self, updates: dict[str, tuple[int, int]]) -> None:
        """Receive the stages to train, each with finished and total updates."""

    def say(self, line: str) -> None:
        """Show a line."""

    def report(self, stage: str, step: int, steps: int, values: dict[str, float]) -> None:
        """Show the metrics of an update, including `samples_per_second`."""


class LineReporter:
    """Writes messages immediately, and metrics of updates at intervals.

    Args:
        write: Writes a line.
        interval: Minimal seconds between lines with metrics. The first and last update of a stage
            are always written.
    """

    def __init__(self, write: Callable[[str], None], interval: float = 60.0) -> None:
        self._write, self._interval = write, interval
        self._stage, self._written_at = "", 0.0

    def __enter__(self) -> "LineReporter":
        """Return the reporter."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: lines are written immediately."""

    def start_run(self, updates: dict[str, tuple[int, int]]) -> None:
        """Do nothing: stages are named with their metrics."""

    def say(self, line: str) -> None:
        """Write a line."""
        self._write(line)

    def report(self, stage: str, step: int, steps: int, values: dict[str, float]) -> None:
        """Write the metrics of an update, if the interval has passed."""
        now = time.monotonic()
        if stage == self._stage and step < steps and now - self._written_at < self._interval:
            return
        self._stage, self._written_at = stage, now
        left = duration((steps - step) * values["seconds"])
        self._write(f"{stage} {step}/{steps}  {_in_words(values)}  {left} left")


class RichReporter:
    """Shows a live bar for the stage and one for the run, below the messages.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
            transient=True,
        )
        self._run: TaskID | None = None
        self._bars: dict[str, TaskID] = {}
        self._made: dict[str, int] = {}

    def __enter__(self) -> "RichReporter":
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the bars."""
        self._progress.stop()

    def start_run(self, updates: dict[str, tuple[int, int]]) -> None:
        """Show the bar of the run, if it has several stages."""
        self._made = {stage: made for stage, (made, _) in updates.items()}
        if len(updates) > 1:
            total = sum(steps for _, steps in updates.values())
            self._run = self._progress.add_task(
                "run", total=total, completed=sum(self._made.values()), values=""
            )

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def report(self, stage: str, step: int, steps: int, values: dict[str, float]) -> None:
        """Update the bars."""
        if stage not in self._bars:
            for bar in self._bars.values():
                self._progress.remove_task(bar)
            self._bars = {stage: self._progress.add_task(stage, total=steps, values="")}
        shown = _in_words(values)
        self._progress.update(self._bars[stage], completed=step, values=shown)
        self._made[stage] = step
        if self._run is not None:
            self._progress.update(self._run, completed=sum(self._made.values()))


class SilentReporter(LineReporter):
    """Reports nothing."""

    def __init__(self) -> None:
        super().__init__(write=_discard)

    def report(self, stage: str, step: int, steps: int, values: dict[str, float]) -> None:
        """Do nothing."""


def duration(seconds: float) -> str:
    """Format a duration: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _in_words(values: dict[str, float]) -> str:
    rate = values.get("samples_per_second")
    names = [n for n in values if n not in (*_LEFT_OUT, "samples_per_second")]
    shown = "  ".join(f"{name} {values[name]:.4f}" for name in names)
    return shown if rate is None else f"{shown}  {rate:.1f} samples/s"


def _discard(line: str) -> None:
    """Discard a line."""


def silence_libraries() -> None:
    """Disable the progress bars and warnings of libraries, but not their errors."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    for name in ("accelerate", "torch.distributed", "wandb"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # deprecation notes for developers
    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category)

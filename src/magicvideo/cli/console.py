"""What the verbs that make pictures share: their console, their model, their progress bar."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from magicvideo.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.pipelines.text_to_video import MagicVideoPipeline


def make_console() -> "Console":
    """Return the console of progress and hints, which leaves the standard output to results."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)

    class Hints(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"Hint: {record.getMessage()}", markup=False)

    logging.getLogger("magicvideo").handlers = [Hints()]
    return console


def load_pipeline(
    console: "Console", model: Path | None, device: str | None, *, whole: bool = False
) -> "MagicVideoPipeline":
    """Return a model whose stages load their networks to a device when they begin.

    Args:
        console: Shows that a model is being loaded.
        model: The model folder; None for the model that is shipped.
        device: `cpu`, `cuda` or `mps`; None for the GPU if there is one.
        whole: All networks are loaded at once, for evaluation, which makes hundreds of videos.

    Raises:
        UserError: If the folder is no whole model, or the device is not there.
    """
    with console.status("Loading the model"):
        import torch
        from transformers.utils import logging as transformers_logging

        from magicvideo.pipelines.text_to_video import MagicVideoPipeline

        present = {
            "cpu": True,
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        device = device or ("cuda" if present["cuda"] else "cpu")
        if not present.get(device, False):
            usable = ", ".join(name for name, there in present.items() if there)
            raise UserError(f"There is no device {device!r} here; what there is: {usable}.")
        transformers_logging.disable_progress_bar()
        if whole:
            return MagicVideoPipeline.from_pretrained(model).to(device)
        return MagicVideoPipeline.from_pretrained(model, offload_device=device)


@contextmanager
def progress_bar(console: "Console", place: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows a stage, its finished steps and their number.

    Every stage has a bar of its own, below those of the stages before it.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        waiting = bar.add_task(f"{place}reading", total=None)
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            bar.update(waiting, visible=False)
            if stage not in tasks:
                tasks[stage] = bar.add_task(f"{place}{stage}")
            bar.update(tasks[stage], completed=done, total=total)

        yield report

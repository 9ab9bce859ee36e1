"""Shared by all commands: standard output, console, progress bars, out-of-memory errors."""

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.errors import UserError
from magicvideo.printable import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]

_LAYOUT = "\n\t"  # of sentences and tables

# torch's out-of-memory messages: CUDA and MPS, cuBLAS, the CPU on Linux and elsewhere
_SIGNS = (
    "out of memory",
    "ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",  # oneDNN
    "could not create a memory object",
)
_WANTED = re.compile(r"allocate (\d+(?:\.\d+)?)\.? (bytes|\w+iB)")


class _TolerantFile(io.FileIO):
    """A standard stream that ignores errors: what cannot be written is discarded."""

    failure: OSError | None = None

    def write(self, data: "ReadableBuffer") -> int:
        """Write; record an error instead of raising it."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            return memoryview(data).nbytes


def tolerate_broken_streams() -> Callable[[], OSError | None]:
    """Make stdout and stderr accept any text, and tolerate a closed pipe or a full disk.

    Characters that the encoding lacks are written as backslash escapes.

    Returns:
        A function that returns the error of the standard output, if any.
    """
    files: list[_TolerantFile] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if os.name == "nt":  # a console is not a plain file there
            stream.reconfigure(errors="backslashreplace")
            continue
        file = _TolerantFile(stream.fileno(), "w", closefd=False)
        tolerant = io.TextIOWrapper(
            io.BufferedWriter(file),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
        )
        setattr(sys, name, tolerant)
        files += [file] if name == "stdout" else []

    def failure() -> OSError | None:
        if sys.stdout is not None:
            sys.stdout.flush()
        return files[0].failure if files else None

    return failure


def say(text: object, *, err: bool = False) -> None:
    """Print a line to the standard output, or to standard error, in the stream's own encoding."""
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # no console
        return
    # not with click, which writes UTF-8 to an ASCII stream
    stream.write(f"{printable(text, keep=_LAYOUT)}\n")
    stream.flush()


def make_console() -> "Console":
    """Return the console for progress and hints, on stderr."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)

    class Hints(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"Hint: {printable(record.getMessage(), keep=_LAYOUT)}", markup=False)

    logging.getLogger("magicvideo").handlers = [Hints()]
    return console


@contextmanager
def progress_bar(console: "Console", place: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows the progress of a stage.

    Every stage has its own progress bar.
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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is an out-of-memory error, on any device."""
    signs = any(sign in str(error) for sign in _SIGNS)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and signs)


def out_of_memory_error(error: BaseException, advice: str) -> UserError:
    """Return an out-of-memory error as one sentence.

    Args:
        error: An error for which `is_out_of_memory` is true.
        advice: What to do, the second half of the sentence.
    """
    wanted = _WANTED.search(str(error))
    asked = f" ({wanted[1]} {wanted[2]} more were requested)" if wanted else ""
    return UserError(f"There is not enough memory{asked}; {advice}.")


@contextmanager
def report_out_of_memory(advice: str) -> Iterator[None]:
    """Report out-of-memory errors in one sentence.

    Raises:
        UserError: In place of the original error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(error, advice) from None

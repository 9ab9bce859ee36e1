"""Signals that stop a run after the current step, with a checkpoint."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGHUP is sent when a terminal is closed; it does not exist on Windows
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_ONE_KEYSTROKE = (
    1.0  # seconds; a launcher repeats a Ctrl-C that the terminal already sent to all processes
)


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Record SIGINT, SIGTERM and SIGHUP in a list; a second Ctrl-C stops immediately.

    Outside the main thread signals cannot be caught, and the list stays empty.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT and number in noted:
            if time.monotonic() - first > _ONE_KEYSTROKE:
                signal.default_int_handler(number, frame)
        elif number == signal.SIGINT:
            first = time.monotonic()
        noted.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS if not _by_nohup(number)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)


def _by_nohup(number: int) -> bool:
    """Return whether nohup has disabled a signal."""
    is_ignored = signal.getsignal(number) is signal.SIG_IGN
    return is_ignored and number not in (signal.SIGINT, signal.SIGTERM)


def ignore_sigterm() -> None:
    """Ignore SIGTERM until the process exits with its own error message.

    A launcher sends it to all processes after one failed, often before its error is printed.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

"""Signals that end a run after the current step, with a checkpoint."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGHUP comes when a terminal is closed; Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_ONE_KEYSTROKE = 1.0  # seconds; a launcher passes on a Ctrl-C that the terminal sent to all


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Yield a list in which SIGINT, SIGTERM and SIGHUP are noted; a second Ctrl-C ends at once.

    Outside of the main thread nothing can be noted, and the list stays empty.
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
    """Return whether nohup has said what becomes of a signal: it has a process ignore SIGHUP."""
    is_ignored = signal.getsignal(number) is signal.SIG_IGN
    return is_ignored and number not in (signal.SIGINT, signal.SIGTERM)


def ignore_sigterm() -> None:
    """Ignore SIGTERM from here to the end of the process, for it ends by itself and says why.

    A launcher sends it to all processes as soon as one is gone, often before the reason is out.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

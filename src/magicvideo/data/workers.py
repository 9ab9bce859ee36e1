"""Running one function over many files in several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeAlias, TypeVar

from magicvideo.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with how many are done, and of how many."""


def run_each(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[Result]:
    """Yield the result of every job as it is done, in any order; one worker is this process.

    Raises:
        UserError: If `workers` is below 1, or a process is killed from outside or by a decoder.
    """
    if workers < 1:
        raise UserError(f"{workers} workers cannot do anything; give 1 or more.")
    if workers == 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, by a lack of memory or a broken file; run the same "
            "command again with fewer --workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it has ended, be it by a kill."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

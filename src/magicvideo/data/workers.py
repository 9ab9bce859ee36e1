"""Running one function over many files in several processes."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeAlias, TypeVar

from magicvideo.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with how many are done, and of how many."""

PATIENCE = 900.0
"""Seconds without a result after which workers count as hung."""


def run_each(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    *,
    patience: float = PATIENCE,
) -> Iterator[Result]:
    """Yield the result of every job as it is done, in any order; one worker is this process.

    Args:
        function: What is done with a job.
        jobs: All of them.
        workers: How many processes.
        patience: Seconds without a result after which they are given up and killed.

    Raises:
        UserError: If `workers` is below 1, or a process hangs, or is killed from outside or by a
            decoder.
    """
    if workers < 1:
        raise UserError(f"{workers} workers cannot do anything; give 1 or more.")
    if workers == 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    done: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
    try:
        for job in jobs:
            pool.submit(function, job).add_done_callback(done.put)
        for _ in jobs:
            yield done.get(timeout=patience).result()
    except queue.Empty:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise UserError(
            f"no file was finished for {patience:.0f} seconds: a worker process hangs, or the disk "
            "does; look at the newest files and the disk, and run the same command again."
        ) from None
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

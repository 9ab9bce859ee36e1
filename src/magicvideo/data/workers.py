"""One function applied to many jobs: in processes, on a Ray cluster, or in ranks of a launcher."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from magicvideo.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with the number of finished jobs and of all jobs."""

PATIENCE = 900.0
"""Seconds without a result after which workers count as hung."""

_RETRIES = 3  # of a job on Ray whose machine was lost


def map_unordered(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    *,
    patience: float = PATIENCE,
) -> Iterator[Result]:
    """Apply a function to jobs in several processes and yield the results in any order.

    One worker is this process.

    Args:
        function: A function of a module, so that other processes can import it.
        jobs: Its arguments.
        workers: Number of processes.
        patience: Seconds without a result after which the processes are killed.

    Raises:
        UserError: If `workers` is below 1, or a process hangs, or is killed from outside or by a
            decoder.
    """
    if workers < 1:
        raise UserError(f"--workers {workers} is too few; give 1 or more.")
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


def map_on_ray(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, cpus: int, gpus: int
) -> Iterator[Result]:
    """Apply a function to jobs on a Ray cluster and yield the results in any order.

    The cluster's machines need this package and the same paths. RAY_ADDRESS names the cluster;
    without it Ray finds the one that this machine belongs to.

    Args:
        function: A function of a module.
        jobs: Its arguments.
        cpus: Cores of one job.
        gpus: GPUs of one job.

    Raises:
        UserError: If Ray is not installed or there is no cluster, or the function raises it.
    """
    try:
        import ray
    except ImportError:
        raise UserError(
            "--ray needs Ray; install it with `pip install 'magicvideo[ray]'`."
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError:
            raise UserError(
                "No Ray cluster was found; set RAY_ADDRESS, or start one with `ray start --head`."
            ) from None
    remote = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)
    waiting = [remote.remote(job) for job in jobs]
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        for reference in waiting:
            ray.cancel(reference)


@dataclass(frozen=True)
class Rank:
    """The place of this process among those that a launcher started, in torchrun's terms.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        local_rank: Number of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ) -> "Rank":
        """Return the rank by RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process.

        Raises:
            UserError: If only one of the first two is set, or they are not numbers that fit.
        """
        found = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE")}
        if not any(found.values()):
            return cls()
        try:
            rank, world_size = (int(value or "") for value in found.values())
            local_rank = int(environment.get("LOCAL_RANK") or 0)
            if not 0 <= rank < world_size or local_rank < 0:
                raise ValueError
        except ValueError:
            said = ", ".join(f"{name}={value}" for name, value in found.items())
            raise UserError(
                f"{said} is not a process and the number of processes; let torchrun set both, or "
                "unset both."
            ) from None
        return cls(rank, world_size, local_rank)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and exit after the parent, even when it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

import multiprocessing
import os
import signal
import time

import pytest

from magicvideo.data.workers import Rank, map_unordered
from magicvideo.errors import UserError


def square(number):
    return number**2


def die(number):
    return os.kill(os.getpid(), signal.SIGKILL + 0 * number)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_is_done_once(workers):
    assert sorted(map_unordered(square, range(17), workers)) == [number**2 for number in range(17)]


def test_a_killed_worker_is_a_clear_mistake():
    with pytest.raises(UserError, match="fewer --workers"):
        list(map_unordered(die, range(5), 2))


def hang(number):
    time.sleep(600 * number)
    return number


def test_a_hanging_worker_is_terminated():
    started = time.monotonic()
    with pytest.raises(UserError, match="no file was finished for 3 seconds: a worker process"):
        list(map_unordered(hang, range(5), 2, patience=3.0))
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


def test_zero_workers_are_refused():
    with pytest.raises(UserError, match="give 1 or more"):
        list(map_unordered(square, range(3), 0))


def test_ranks_are_read_from_the_environment_that_torchrun_sets(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.from_env() == Rank(0, 1, 0)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Rank.from_env() == Rank(2, 3, 0)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(UserError, match="RANK=3, WORLD_SIZE=3 is not a process and the number"):
        Rank.from_env()

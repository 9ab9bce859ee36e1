"""Faults that several test files inject: a full disk, a process killed during its work."""

import contextlib
import os
import resource
import signal
import sys
import warnings

import pytest

STEPS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


@pytest.fixture(scope="session")
def full_disk():
    """A context in which no file can grow beyond so many bytes, as a full disk looks to writers."""

    @contextlib.contextmanager
    def limit(room):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="session")
def killed_at_step():
    """A function that runs an action in a child, which is killed at its step `number` on the disk.

    It returns whether the action had so many steps.
    """

    def run(action, number):
        with warnings.catch_warnings():
            # of threads, which the child has not; it computes nothing that needs them
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            left = number

            def count(event, _):
                nonlocal left
                if event in STEPS:
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            try:
                action()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)

    return run

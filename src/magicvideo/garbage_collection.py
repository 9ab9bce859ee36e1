"""Python's garbage collector, which need not run while large libraries are imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Let the collector wait while modules are imported.

    Importing torch, diffusers and transformers creates about a million objects that all stay. The
    collector would walk through them more than a thousand times and find almost nothing, at a fifth
    of the CPU time of starting up. What it found before remains as it was: a collector that the
    caller has disabled stays disabled.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

"""Importing libraries: without garbage collection, and with advice where one is missing."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires

_REQUIREMENT = re.compile(r"""([\w.-]+)[^;]*;.*\bextra == ['"]([\w-]+)['"]""")
_OF_DEVELOPERS = {"dev", "docs"}


def explain_missing(error: ModuleNotFoundError) -> str | None:
    """Return a sentence that names the extra which brings a module, or None if none does.

    Args:
        error: What Python raised in place of importing the module.
    """
    module = (error.name or "").partition(".")[0].lower()
    for requirement in requires("magicvideo") or []:
        match = _REQUIREMENT.match(requirement)
        if match and match[2] not in _OF_DEVELOPERS and _module_name(match[1]) == module:
            return f"This needs {match[1]}; install it with `pip install 'magicvideo[{match[2]}]'`."
    return None


def _module_name(package: str) -> str:
    """Return the module of a package, as those of our extras are called."""
    return re.sub(r"[.-]+", "_", package).lower()


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

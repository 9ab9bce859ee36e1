"""Importing libraries: without garbage collection, and with advice for missing ones."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires

_REQUIREMENT = re.compile(r"""([\w.-]+)[^;]*;.*\bextra == ['"]([\w-]+)['"]""")
_OF_DEVELOPERS = {"dev", "docs"}


def explain_missing(error: ModuleNotFoundError) -> str | None:
    """Return a message that names the extra with a module, or None if there is none.

    Args:
        error: Error of the failed import.
    """
    module = (error.name or "").partition(".")[0].lower()
    for requirement in requires("magicvideo") or []:
        match = _REQUIREMENT.match(requirement)
        if match and match[2] not in _OF_DEVELOPERS and _module_name(match[1]) == module:
            return f"This needs {match[1]}; install it with `pip install 'magicvideo[{match[2]}]'`."
    return None


def _module_name(package: str) -> str:
    """Return the module name of a package."""
    return re.sub(r"[.-]+", "_", package).lower()


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Pause garbage collection while modules are imported.

    Importing torch, diffusers and transformers creates about a million permanent objects. The
    collector would traverse them more than a thousand times, which takes a fifth of the startup
    time. A collector disabled by the caller stays disabled.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

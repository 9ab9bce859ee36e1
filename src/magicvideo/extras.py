"""What to install where a command or a class needs a package that is not there."""

import re
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

"""Feature networks as TorchScript files, called as the published ones want it.

A TorchScript file is a program: opening one runs what its maker put in. It can read and write no
Python objects, but it can call every operator of torch, so take one only from whom you trust, and
compare the SHA-256 that every result repeats.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magicvideo.errors import UserError
from magicvideo.evaluation.networks.files import ResolvedFile


def load_script(located: ResolvedFile) -> torch.jit.ScriptModule:
    """Return the program of a file, on the CPU.

    Raises:
        UserError: If the file is no TorchScript.
    """
    try:
        with warnings.catch_warnings():
            # torch advises against the format, and the published files have no other
            warnings.simplefilter("ignore", DeprecationWarning)
            loaded: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(located.path), map_location="cpu"
            )
        return loaded.eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{located.name} is no TorchScript file ({_first_line(error)}), nor is it called "
            ".safetensors; docs/evaluation.md names the files that can be read."
        ) from None


def call_script(
    script: nn.Module, located: ResolvedFile, given: Tensor, options: dict[str, bool]
) -> Float[Tensor, "n d"]:
    """Return what a program makes of its input: one row of numbers for each entry.

    Raises:
        UserError: If it takes no such options, or gives something else.
    """
    try:
        found = script(given, **options)
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        raise UserError(
            f"{located.name} cannot be called with {', '.join(options)} ({_first_line(error)}); "
            "docs/evaluation.md names the files that can."
        ) from None
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise UserError(f"{located.name} gives no row of features; name another file.")
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__

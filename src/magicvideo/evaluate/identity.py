"""What every number depends on: the weights, the data, and the versions that computed it."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from magicvideo.data.manifest import MANIFEST
from magicvideo.storage import sha256

# the last two read and resize what is looked at
_PACKAGES = ("magicvideo", "torch", "diffusers", "transformers", "numpy", "av", "pillow")


def identity(
    networks: Mapping[str, str | None], data: Mapping[str, Path], device: str
) -> dict[str, Any]:
    """Return all that numbers depend on beside their settings.

    Args:
        networks: Hashes of weights by what they are, None for weights that are on no disk.
        data: Folders of prepared clips by what they are.
        device: Where the networks ran.
    """
    return {
        **networks,
        **{name: sha256(folder / MANIFEST) for name, folder in data.items()},
        "device": device,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
    }

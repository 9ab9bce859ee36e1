"""Provenance of results: hashes of weights and data, versions and device."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from magicvideo.atomic_io import sha256
from magicvideo.data.manifest import MANIFEST

_PACKAGES = (
    "magicvideo",
    "torch",
    "diffusers",
    "transformers",
    "numpy",
    # these compute scores and intervals
    "scipy",
    "torchmetrics",
    # these read and resize what is looked at
    "av",
    "pillow",
)


def provenance(
    networks: Mapping[str, str | None], data: Mapping[str, Path], device: str
) -> dict[str, Any]:
    """Return what results depend on besides their settings.

    Args:
        networks: Hashes of weights by role; None for weights that were never saved.
        data: Folders of prepared clips by role.
        device: Device of the networks.
    """
    return {
        **networks,
        **{name: sha256(folder / MANIFEST) for name, folder in data.items()},
        "device": device,
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # not every score needs torchmetrics
        return "absent"

"""Weights from a disk that is not trusted: safetensors, or a checkpoint that holds no code."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from magicvideo.errors import UserError
from magicvideo.pipelines.model_folder import read_json, read_safetensors_header

_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def read_folder(folder: Path, stem: str) -> dict[str, Tensor]:
    """Return the tensors of one component, whole or in shards, in single or half precision.

    Args:
        folder: The component's folder.
        stem: What its weights are called: `diffusion_pytorch_model` or `model`.

    Raises:
        UserError: If there are no safetensors, or a file is missing, damaged or not as the index
            of the shards says.
    """
    for variant in ("", ".fp16"):
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return _read_whole(whole)
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return _read_shards(index)
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise UserError(
            f"{folder} holds pickles alone, which can run code; take the version of the model "
            f"that has {stem}.safetensors."
        )
    raise UserError(f"{folder} lacks {stem}.safetensors; take a complete copy of the model.")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file, or of a `.ckpt` that holds nothing but data.

    A checkpoint is a pickle. It is read by torch's restricted reader, which builds tensors and
    plain containers and calls nothing else that the file names.

    Raises:
        UserError: If the file is damaged or of another kind, or holds objects.
    """
    if path.suffix == ".safetensors":
        return _read_whole(path)
    if path.suffix not in (".ckpt", ".pt", ".pth"):
        raise UserError(f"{path} is no checkpoint; allowed are .safetensors and .ckpt.")
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused a moment later
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is a pickle that holds more than tensors, and reading it could run code; "
            "take the .safetensors version of the model."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}).") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no weights by name; take another version of the model.")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if strange := [name for name in state if name not in tensors]:
        raise UserError(f"{path} holds {strange[0]!r}, which is no tensor.")
    size = path.stat().st_size
    if large := [name for name, tensor in tensors.items() if tensor.nbytes > size]:
        raise UserError(f"{path} has {size:,} bytes, and {large[0]!r} in it would be larger.")
    return tensors


def _check_archive(path: Path) -> None:
    """Refuse an archive that is smaller than what it unfolds to, which torch never writes."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({error}).") from None
    if unfolded > path.stat().st_size:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and would unfold to {unfolded:,}; "
            "checkpoints are not compressed, so take another copy of the model."
        )


def _read_whole(path: Path) -> dict[str, Tensor]:
    read_safetensors_header(path)
    return load_file(path)


def _read_shards(index: Path) -> dict[str, Tensor]:
    places: Any = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise UserError(f"{index} is no index of shards; take a fresh copy of the folder.")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        shard = _read_whole(index.parent / file)
        if foreign := [name for name in shard if places.get(name) != file]:
            raise UserError(
                f"{index.parent / file} holds {foreign[0]}, which {index.name} does not say; "
                "take a fresh copy of the folder."
            )
        tensors.update(shard)
    if missing := sorted(places.keys() - tensors.keys()):
        raise UserError(f"{index} promises {missing[0]}, which no shard holds.")
    return tensors

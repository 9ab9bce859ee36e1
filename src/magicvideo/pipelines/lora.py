"""LoRA files into a loaded model: read, checked, merged into its weights, and taken out again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from magicvideo.atomic_io import sha256
from magicvideo.errors import UserError
from magicvideo.models.lora import (
    BASE_MODEL,
    PEFT_PREFIX,
    LoraWeights,
    convert_lora_state_dict,
    merge_lora,
)
from magicvideo.pipelines.model_folder import read_json, read_safetensors_header
from magicvideo.pipelines.request import LoraRef

COMPONENTS = ("unet", "text_encoder")
_PEFT_CONFIG = "adapter_config.json"
_DIFFUSERS_CONFIG = "lora_adapter_metadata"
# what peft may do in other ways than plain LoRA, and its plain way
_PLAIN: Mapping[str, Any] = {
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "alpha_pattern": {},
}


@dataclass(frozen=True)
class Lora:
    """A LoRA that fits a model.

    Attributes:
        use: What a request says of it.
        updates: What it adds to weights, by component and name.
        base: Hash of the model that it was trained on, where the file tells.
    """

    use: LoraRef
    updates: Mapping[str, Mapping[str, LoraWeights]]
    base: str | None


class LoraStack:
    """The LoRAs of a loaded model, in order, and the weights that were there before them."""

    def __init__(self) -> None:
        self.loras: list[Lora] = []
        self._before: dict[str, dict[str, Tensor]] = {}

    @property
    def uses(self) -> tuple[LoraRef, ...]:
        """Return what a request says of them."""
        return tuple(lora.use for lora in self.loras)

    def add(self, lora: Lora, networks: Mapping[str, nn.Module]) -> None:
        """Merge one more into networks that have their weights; their old weights are kept.

        Raises:
            UserError: If it is there already.
        """
        if any(known.use.sha256 == lora.use.sha256 for known in self.loras):
            raise UserError(f"The LoRA {lora.use.name} is loaded already; name it once.")
        self.loras.append(lora)
        for component, network in networks.items():
            weights = dict(network.named_parameters())
            before = self._before.setdefault(component, {})
            for name in lora.updates.get(component, {}):
                before.setdefault(name, weights[name].detach().clone())
            _merge(lora, component, network)

    def merge_all(self, component: str, network: nn.Module) -> None:
        """Merge all into a network that has just got its weights anew."""
        for lora in self.loras:
            _merge(lora, component, network)

    @torch.no_grad()
    def clear(self, networks: Mapping[str, nn.Module]) -> None:
        """Give networks back the weights that were there before, to the last bit."""
        for component, before in self._before.items():
            weights = dict(networks[component].named_parameters())
            for name, tensor in before.items():
                weights[name].copy_(tensor)
        self.forget()

    def forget(self) -> None:
        """Take the weights as they are for the model's own."""
        self.loras, self._before = [], {}


def read_lora(path: Path, scale: float, networks: Mapping[str, nn.Module]) -> Lora:
    """Return the LoRA in a file, every tensor of it accounted for.

    Args:
        path: A safetensors file in the layout of peft, diffusers or kohya.
        scale: Factor of its updates.
        networks: The model's `unet` and `text_encoder`; they need no weights yet.

    Raises:
        UserError: If the file is no safetensors file, or a tensor is unknown or does not fit.
    """
    use = LoraRef(name=path.name, sha256=lora_hash(path), scale=scale)
    with safe_open(path, framework="pt") as file:
        notes: dict[str, str] = file.metadata() or {}
    weights = {name: dict(network.named_parameters()) for name, network in networks.items()}
    updates = convert_lora_state_dict(load_file(path), weights, _alphas(path, notes), str(path))
    return Lora(use, updates, notes.get(BASE_MODEL))


def lora_hash(path: Path) -> str:
    """Return the identity of a LoRA: the SHA-256 of its file.

    Peft keeps alpha in a file beside the weights; there it is the SHA-256 of both files' sums.

    Raises:
        UserError: If there is no such file or it is no safetensors file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the .safetensors file in it.")
    if not path.is_file():
        raise UserError(f"The LoRA {path} does not exist.")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not read, since only .safetensors files cannot run code.")
    config = _peft_config(path)
    if config is None:
        return sha256(path)
    return hashlib.sha256(f"{sha256(path)} {sha256(config)}".encode()).hexdigest()


def _merge(lora: Lora, component: str, network: nn.Module) -> None:
    updates = lora.updates.get(component, {})
    merge_lora(dict(network.named_parameters()), updates, lora.use.scale)


def _peft_config(path: Path) -> Path | None:
    """Return the file that tells alpha where the weights are in peft's own layout."""
    if not any(key.startswith(PEFT_PREFIX) for key in read_safetensors_header(path)):
        return None
    config = path.with_name(_PEFT_CONFIG)
    if not config.is_file():
        raise UserError(f"{config} is missing, in which peft keeps alpha; put it beside {path}.")
    return config


def _alphas(path: Path, notes: Mapping[str, str]) -> dict[str, float]:
    """Return the alpha of each component, where the file or the one beside it tells.

    Raises:
        UserError: If it tells of something beyond plain LoRA.
    """
    config = _peft_config(path)
    if config is not None:
        told = read_json(config)
    else:
        try:
            told = json.loads(notes.get(_DIFFUSERS_CONFIG, "{}"))
        except ValueError:
            raise UserError(f"{path}: {_DIFFUSERS_CONFIG} in its header is no JSON.") from None
    alphas = {}
    for component in COMPONENTS:
        own = {
            name: told.get(f"{component}.{name}", told.get(name))
            for name in ("lora_alpha", *_PLAIN)
        }
        for name, plain in _PLAIN.items():
            if own[name] not in (None, plain):
                raise UserError(f"{path} was made with {name}={own[name]}, which is not supported.")
        if own["lora_alpha"] is not None:
            alphas[component] = float(own["lora_alpha"])
    return alphas

"""LoRA files in a loaded model: read, checked, merged into its weights, and taken out again."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from magicvideo.atomic_io import sha256
from magicvideo.errors import UserError
from magicvideo.limits import parse_json
from magicvideo.models.lora import (
    BASE_MODEL,
    LORA_FILE,
    PEFT_PREFIX,
    LoraWeights,
    convert_lora_state_dict,
    merge_lora,
)
from magicvideo.pipelines.model_folder import read_json, read_safetensors_header
from magicvideo.pipelines.request import LoraRef

ADAPTED_COMPONENTS = ("unet", "text_encoder")
_PEFT_CONFIG = "adapter_config.json"
_PEFT_FILE = "adapter_model.safetensors"
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
        ref: What a request says of it.
        weights: What it adds, by component and name of the weight.
        base: Hash of the model that it was trained on, where the file tells.
    """

    ref: LoraRef
    weights: Mapping[str, Mapping[str, LoraWeights]]
    base: str | None

    def scaled(self, scale: float) -> "Lora":
        """Return it at another scale."""
        return replace(self, ref=replace(self.ref, scale=scale))


@dataclass
class _Adapter:
    """A loaded LoRA: whether it is merged into the weights, and whether it stays there."""

    lora: Lora
    is_active: bool = True
    is_fused: bool = False


class LoraStack:
    """The LoRAs of a loaded model, in order, and the weights that were there before them.

    The LoRAs in use are merged into the weights, so that sampling costs nothing more. Every change
    starts again from the weights that were there before, to the last bit.
    """

    def __init__(self) -> None:
        self._adapters: dict[str, _Adapter] = {}
        self._before: dict[str, dict[str, Tensor]] = {}
        self._is_enabled = True

    @property
    def refs(self) -> tuple[LoraRef, ...]:
        """Return what a request says of the LoRAs in use."""
        return tuple(lora.ref for lora in self._in_use())

    def add(self, lora: Lora, name: str | None, networks: Mapping[str, nn.Module]) -> None:
        """Merge one more into networks that have their weights; their old weights are kept.

        Args:
            lora: The LoRA.
            name: For `activate` and `delete`; by default one that is free.
            networks: By component.

        Raises:
            UserError: If it is there already, the name is taken, or weights would not be finite;
                the networks are then as before.
        """
        known = [adapter.lora.ref.sha256 for adapter in self._adapters.values()]
        if lora.ref.sha256 in known:
            raise UserError(f"The LoRA {lora.ref.name} is loaded already; name it once.")
        if name is None:
            name = f"default_{len(self._adapters)}"
        if name in self._adapters:
            raise UserError(f"There is a LoRA {name!r} already; choose another adapter_name.")
        self._check_in_memory(networks)
        self._adapters[name] = _Adapter(lora)
        if not self._is_enabled:
            return
        try:
            for component, network in networks.items():
                self._keep(component, network, lora)
                _merge(lora, component, network)
        except UserError:  # one network may have it already
            del self._adapters[name]
            self._rebuild(networks)
            raise

    def merge_into(self, component: str, network: nn.Module) -> None:
        """Merge the LoRAs in use into a network that has just been loaded."""
        for lora in self._in_use():
            _merge(lora, component, network)

    def activate(
        self, names: Sequence[str], scales: Sequence[float], networks: Mapping[str, nn.Module]
    ) -> None:
        """Use these LoRAs at these scales, and no others but fused ones.

        Raises:
            UserError: If a name is unknown, or the numbers of names and scales differ.
        """
        if len(names) != len(scales):
            raise UserError(
                f"{len(scales)} weights were given for {len(names)} adapters; give one for each."
            )
        self._check_names(names)
        chosen = {
            name: self._adapters[name].lora.scaled(float(scale))
            for name, scale in zip(names, scales, strict=True)
        }
        for name, adapter in self._adapters.items():
            if adapter.is_fused:
                continue
            adapter.is_active = name in chosen
            adapter.lora = chosen.get(name, adapter.lora)
        # in the order in which they were named
        rest = {name: one for name, one in self._adapters.items() if name not in chosen}
        self._adapters = {**rest, **{name: self._adapters[name] for name in chosen}}
        self._rebuild(networks)

    def delete(self, names: Sequence[str], networks: Mapping[str, nn.Module]) -> None:
        """Take some LoRAs out.

        Raises:
            UserError: If a name is unknown.
        """
        self._check_names(names)
        for name in names:
            del self._adapters[name]
        self._rebuild(networks)

    def switch(self, *, enabled: bool, networks: Mapping[str, nn.Module]) -> None:
        """Use all active LoRAs, or none."""
        self._is_enabled = enabled
        self._rebuild(networks)

    def fuse(self, scale: float, networks: Mapping[str, nn.Module]) -> None:
        """Keep the LoRAs in use through `unload`, their scales multiplied by one more."""
        for adapter in self._adapters.values():
            if adapter.is_active:
                adapter.lora = adapter.lora.scaled(adapter.lora.ref.scale * scale)
                adapter.is_fused = True
        if scale != 1.0:
            self._rebuild(networks)

    def unfuse(self) -> None:
        """Undo `fuse`."""
        for adapter in self._adapters.values():
            adapter.is_fused = False

    def unload(self, networks: Mapping[str, nn.Module]) -> None:
        """Take all out but fused ones; without any, weights are as before to the last bit."""
        self._adapters = {name: one for name, one in self._adapters.items() if one.is_fused}
        self._rebuild(networks)
        if not self._adapters:
            self._before, self._is_enabled = {}, True

    def bake(self) -> None:
        """Take the weights as they are for the model's own."""
        self._adapters, self._before, self._is_enabled = {}, {}, True

    def active_names(self) -> list[str]:
        """Return the names of the LoRAs in use, in order."""
        used = self._is_enabled
        return [
            name for name, one in self._adapters.items() if one.is_fused or (one.is_active and used)
        ]

    def names_by_component(self) -> dict[str, list[str]]:
        """Return the names of the LoRAs that each component has."""
        found = {
            component: [
                name for name, one in self._adapters.items() if one.lora.weights.get(component)
            ]
            for component in ADAPTED_COMPONENTS
        }
        return {component: names for component, names in found.items() if names}

    def _in_use(self) -> list[Lora]:
        return [self._adapters[name].lora for name in self.active_names()]

    @torch.no_grad()
    def _rebuild(self, networks: Mapping[str, nn.Module]) -> None:
        """Bring networks from the weights before to those with the LoRAs in use."""
        self._check_in_memory(networks)
        for component, before in self._before.items():
            if component in networks:
                weights = dict(networks[component].named_parameters())
                for name, tensor in before.items():
                    weights[name].copy_(tensor)
        for lora in self._in_use():
            for component, network in networks.items():
                self._keep(component, network, lora)
                _merge(lora, component, network)

    def _keep(self, component: str, network: nn.Module, lora: Lora) -> None:
        weights = dict(network.named_parameters())
        before = self._before.setdefault(component, {})
        for name in lora.weights.get(component, {}):
            before.setdefault(name, weights[name].detach().clone())

    def _check_names(self, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self._adapters]:
            there = ", ".join(self._adapters) or "none"
            raise UserError(f"There is no LoRA {unknown[0]!r}; loaded are: {there}.")

    def _check_in_memory(self, networks: Mapping[str, nn.Module]) -> None:
        if any(weight.is_meta for one in networks.values() for weight in one.parameters()):
            raise UserError(
                "The weights are offloaded one by one; load LoRAs before "
                "enable_sequential_cpu_offload."
            )


def locate_lora(
    name_or_path: str | Path,
    weight_name: str | None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the file of a LoRA, out of a folder or a repository on the Hub.

    Args:
        name_or_path: A file or folder; or, as a string, `owner/name` of a repository.
        weight_name: Name of the file in a folder or repository.
        revision: Of the repository.
        token: Access token of the Hub.
        cache_dir: Folder of downloads.
        local_files_only: Download nothing.

    Raises:
        UserError: If there is no such file.
    """
    path = Path(name_or_path)
    if path.is_dir() and weight_name is not None:
        return path / weight_name
    if path.is_dir():
        usual = [path / LORA_FILE, path / _PEFT_FILE, *sorted(path.glob("*.safetensors"))]
        found = [file for file in usual if file.is_file()]
        if not found:
            raise UserError(f"{path} holds no .safetensors file; name the file of the LoRA.")
        return found[0]
    is_repository = isinstance(name_or_path, str) and name_or_path.count("/") == 1
    if path.exists() or path.suffix == ".safetensors" or not is_repository:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            hf_hub_download(
                str(name_or_path),
                weight_name or LORA_FILE,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        )
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"The LoRA {name_or_path} cannot be downloaded: {reason}.") from None


def read_lora(
    source: Path | Mapping[str, Tensor], scale: float, networks: Mapping[str, nn.Module]
) -> Lora:
    """Return the LoRA in a file, every tensor of it accounted for.

    Args:
        source: A safetensors file in the layout of peft, diffusers or kohya, or its tensors.
        scale: Factor of its weights.
        networks: The model's `unet` and `text_encoder`; they need no weights yet.

    Raises:
        UserError: If the file is no safetensors file, or a tensor is unknown or does not fit.
    """
    weights = {name: dict(network.named_parameters()) for name, network in networks.items()}
    if isinstance(source, Mapping):
        tensors = {name: tensor.contiguous() for name, tensor in source.items()}
        digest = hashlib.sha256(save(tensors)).hexdigest()
        ref = LoraRef(name="(tensors)", sha256=digest, scale=scale)
        return Lora(ref, convert_lora_state_dict(tensors, weights, {}, ref.name), None)
    ref = LoraRef(name=source.name, sha256=lora_hash(source), scale=scale)
    with safe_open(source, framework="pt") as file:
        notes: dict[str, str] = file.metadata() or {}
    converted = convert_lora_state_dict(
        load_file(source), weights, _alphas(source, notes), str(source)
    )
    return Lora(ref, converted, notes.get(BASE_MODEL))


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
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"{path} is not read: only .safetensors files are, which cannot run code. If it is "
            "one under another name, rename it."
        )
    config = _peft_config(path)
    if config is None:
        return sha256(path)
    return hashlib.sha256(f"{sha256(path)} {sha256(config)}".encode()).hexdigest()


def _merge(lora: Lora, component: str, network: nn.Module) -> None:
    weights = lora.weights.get(component, {})
    merge_lora(dict(network.named_parameters()), weights, lora.ref.scale)


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
    told: object
    if config is not None:
        told = read_json(config)
    else:
        try:
            told = parse_json(notes.get(_DIFFUSERS_CONFIG, "{}"))
        except ValueError:
            told = None
    if not isinstance(told, dict):
        raise UserError(f"{path}: {_DIFFUSERS_CONFIG} in its header is no JSON object.")
    alphas = {}
    for component in ADAPTED_COMPONENTS:
        own = {
            name: told.get(f"{component}.{name}", told.get(name))
            for name in ("lora_alpha", *_PLAIN)
        }
        for name, plain in _PLAIN.items():
            if own[name] not in (None, plain):
                raise UserError(f"{path} was made with {name}={own[name]}, which is not supported.")
        if own["lora_alpha"] is not None:
            alphas[component] = _finite_alpha(path, own["lora_alpha"])
    return alphas


def _finite_alpha(path: Path, alpha: object) -> float:
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not math.isfinite(float(alpha)):  # type: ignore[arg-type]
        raise UserError(f"{path}: lora_alpha is {alpha!r:.60}; it must be a finite number.")
    return float(alpha)  # type: ignore[arg-type]

"""LoRA weights: conversion between file layouts, and merging into a network.

Supported layouts are those of peft, older versions of diffusers, kohya's scripts and ComfyUI.
Layers are looked up by the names in the network, so temporal layers, which diffusers' converters do
not support, are converted too. Every tensor of a file is checked.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from magicvideo.errors import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Default name of a LoRA file in diffusers."""
BASE_MODEL = "base_model_sha256"
"""Key of the file's metadata under which training stores the hash of the adapted model's folder."""


@dataclass(frozen=True)
class LoraWeights:
    """LoRA of one layer, W + alpha / rank * up @ down (Hu et al., 2106.09685, section 4.1).

    Attributes:
        down: Projection to rank r, `r in`, or `r in kh kw` for a convolution.
        up: Projection from rank r, `out r`, or `out r 1 1`.
        alpha: Numerator of the factor alpha / rank.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Return the rank r."""
        return self.down.shape[0]

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether it fits a weight of this shape.

        A 1x1 convolution and a linear layer are equivalent, so each fits the other.
        """
        out, *inner = shape
        return (
            min(self.down.ndim, self.up.ndim) >= 2
            and self.up.shape[0] == out
            and _without_ones(self.up.shape[1:]) == (self.rank,)
            and _without_ones(self.down.shape[1:]) == _without_ones(inner)
        )

    def delta(self, shape: Sequence[int]) -> Tensor:
        """Return alpha / rank * up @ down in this shape, in float32 on the CPU."""
        down, up = (tensor.detach().float().cpu().flatten(1) for tensor in (self.down, self.up))
        return (up @ down).mul_(self.alpha / self.rank).reshape(*shape)


@torch.no_grad()
def merge_lora(
    weights: Mapping[str, Tensor], updates: Mapping[str, LoraWeights], scale: float
) -> None:
    """Merge LoRAs into weights in place: W + scale * alpha / rank * up @ down.

    The product is computed in float32 on the CPU, so that all devices get the same weights. If a
    sum is not finite, no weight is changed.

    Raises:
        UserError: If a sum is not finite in the precision of the weight.
    """
    merged = {}
    for name, update in updates.items():
        weight = weights[name]
        delta = update.delta(weight.shape).mul_(scale).to(weight.device)
        # rounded once, after the sum; peft rounds the product to the weight's dtype first
        merged[name] = (weight.float() + delta).to(weight.dtype)
        if not merged[name].isfinite().all():
            raise UserError(
                f"The LoRA at scale {scale:g} makes {name} infinite or not a number; its alpha "
                f"is {update.alpha:g}. Use a smaller scale, or another copy of the file."
            )
    for name, tensor in merged.items():
        weights[name].copy_(tensor)


def to_peft_state_dict(updates: Mapping[str, LoraWeights], component: str) -> dict[str, Tensor]:
    """Convert LoRA weights to the file layout shared by peft and diffusers.

    The factor alpha / rank is multiplied into `up`. Without a stored alpha all readers assume a
    factor of one, so all of them compute the same weights.
    """
    tensors = {}
    for name, update in updates.items():
        module = f"{component}.{name.removesuffix('.weight')}"
        up = update.up.detach() * (update.alpha / update.rank)
        tensors[f"{module}.lora_A.weight"] = update.down.detach().cpu().contiguous()
        tensors[f"{module}.lora_B.weight"] = up.cpu().contiguous()
    return tensors


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without the axes of a 1x1 kernel."""
    first, *kernel = shape
    return (first,) if math.prod(kernel) == 1 else (first, *kernel)


# endings of names: in peft's layout, diffusers' older layouts, and kohya's
_ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}
# unsupported kinds, by a part of their names
_OTHERS = {
    "lora_te2_": "Stable Diffusion XL",
    "text_encoder_2.": "Stable Diffusion XL",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "a LoRA in Tucker form",
    "lora_embedding": "an embedding",
    ".bias": "a LoRA with biases",
    ".diff": "a change of whole tensors",
}
_KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"}
PEFT_PREFIX = "base_model.model."
_COMFY_PREFIX = "diffusion_model."  # ComfyUI's name of the denoiser
_TEXT_PREFIX = "text_model."  # in some versions of transformers
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

Updates = dict[str, dict[str, LoraWeights]]


@dataclass
class _Found:
    """Tensors of a file for one layer, with their names in the file."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def convert_lora_state_dict(
    tensors: Mapping[str, Tensor],
    networks: Mapping[str, Mapping[str, Tensor]],
    alphas: Mapping[str, float],
    source: str,
) -> Updates:
    """Convert the tensors of a LoRA file, by component and name of the weight.

    Args:
        tensors: Tensors of the file.
        networks: Weights of `unet` and, optionally, `text_encoder`.
        alphas: Alpha by component, if not stored in the tensors; by default the rank.
        source: Name of the file, for messages.

    Raises:
        UserError: If a tensor is unknown, not finite, or of the wrong shape, or its partner is
            missing.
    """
    places = {name: _layers(weights) for name, weights in networks.items()}
    found: dict[tuple[str, str], _Found] = {}
    for key, tensor in tensors.items():
        module, kind = _split(key, source)
        component, layer = _place(module, places)
        if layer is None:
            raise _unknown(key, component, source)
        entry = found.setdefault((component, layer), _Found())
        if kind in entry.tensors:
            raise UserError(f"{source} has two tensors for {layer}: {entry.keys[kind]}, {key}.")
        entry.tensors[kind], entry.keys[kind] = tensor, key
    if not found:
        raise UserError(f"{source} is empty; use a file with a LoRA.")
    updates: Updates = {}
    for (component, layer), entry in found.items():
        update = _update(entry, alphas.get(component), source)
        weight = networks[component][f"{layer}.weight"]
        if not update.fits(weight.shape):
            raise UserError(
                f"{source}: {entry.keys['down']} has the shape {list(update.down.shape)} and "
                f"{entry.keys['up']} {list(update.up.shape)}, and the layer of this model "
                f"{list(weight.shape)}; the LoRA was made for another base model."
            )
        updates.setdefault(component, {})[f"{layer}.weight"] = update
    return updates


def _layers(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a network's layers with weights, by their names and by kohya's flat names."""
    layers = {}
    for name in weights:
        if name.endswith(".weight") and weights[name].ndim >= 2:
            layer = name.removesuffix(".weight")
            short = layer.removeprefix(_TEXT_PREFIX)
            layers[short] = layers[short.replace(".", "_")] = layer
    return layers


def _split(key: str, source: str) -> tuple[str, str]:
    """Split a name into the layer and `down`, `up` or `alpha`."""
    # peft may insert the name of the adapter: `lora_A.default.weight`
    key = re.sub(r"\.(lora_[AB])\.\w+\.weight$", r".\1.weight", key)
    for ending, kind in _ENDINGS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), kind
    for part, what in _OTHERS.items():
        if part in key:
            raise UserError(
                f"{source} holds {key}: it is {what}, which is not supported; take a plain LoRA "
                "of linear layers and convolutions."
            )
    raise UserError(f"{source} contains the unknown tensor {key}.")


def _place(module: str, places: Mapping[str, Mapping[str, str]]) -> tuple[str, str | None]:
    """Return the component and layer of a name; None for an unknown layer."""
    for prefix, component in _KOHYA.items():
        if module.startswith(prefix):
            flat = module.removeprefix(prefix).removeprefix("text_model_")
            return component, places.get(component, {}).get(flat)
    component = "text_encoder" if module.startswith("text_encoder.") else "unet"
    bare = module.replace(PEFT_PREFIX, "").removeprefix(f"{component}.").replace(".processor", "")
    if component == "unet":
        bare = bare.removeprefix(_COMFY_PREFIX)
    if component == "text_encoder":
        bare = bare.removeprefix(_TEXT_PREFIX)
    return component, next(
        (places[component][name] for name in _spellings(bare) if name in places.get(component, {})),
        None,
    )


def _spellings(module: str) -> Iterator[str]:
    """Yield the name of a layer, and its names in older layouts."""
    yield module
    before, _, last = module.rpartition(".")
    if last == "to_out":
        yield f"{module}.0"
    if last in _OLD_TEXT_NAMES:
        yield f"{before}.{_OLD_TEXT_NAMES[last]}"


def _unknown(key: str, component: str, source: str) -> UserError:
    for part, what in _OTHERS.items():
        if part in key:
            return UserError(
                f"{source} holds {key}: it is of {what}, which is not supported; take a LoRA of "
                "Stable Diffusion 1.x."
            )
    return UserError(
        f"{source} holds {key}, and the {component} of this model has no such layer; the LoRA was "
        "made for another base model."
    )


def _update(entry: _Found, alpha: float | None, source: str) -> LoraWeights:
    if missing := {"down", "up"} - entry.tensors.keys():
        key = next(iter(entry.keys.values()))
        raise UserError(
            f"{source} holds {key} and not the matrix {sorted(missing)[0]} that goes with it; take "
            "a complete copy."
        )
    for kind, tensor in entry.tensors.items():
        # alpha may be stored as an integer
        if not (tensor.is_floating_point() or (kind == "alpha" and not tensor.is_complex())):
            raise UserError(
                f"{source}: {entry.keys[kind]} has dtype {tensor.dtype}, which is not supported."
            )
        if not torch.isfinite(tensor.float()).all():
            raise UserError(f"{source}: {entry.keys[kind]} contains values that are not finite.")
    down, up = entry.tensors["down"], entry.tensors["up"]
    if "alpha" in entry.tensors:
        stored = entry.tensors["alpha"]
        if math.prod(stored.shape) != 1:
            raise UserError(f"{source}: {entry.keys['alpha']} is not a single number.")
        alpha = float(stored)
    rank = down.shape[0] if down.ndim else 0
    if rank == 0:
        raise UserError(f"{source}: {entry.keys['down']} has rank 0; use another copy.")
    return LoraWeights(down, up, float(rank) if alpha is None else alpha)

"""Low-rank updates of a network's layers, as a LoRA holds them, and adding them to the weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls such a file."""
BASE_MODEL = "base_model_sha256"
"""Under it the header of a file of ours names the model that it adapts: the hash of its folder."""


@dataclass(frozen=True)
class LoraWeights:
    """What a LoRA adds to the weight of one layer: alpha / rank times up @ down.

    Attributes:
        down: Rows by which the input shrinks, `r in`, or `r in kh kw` for a convolution.
        up: Columns by which it grows again, `out r`, or `out r 1 1`.
        alpha: Divided by the rank it is the factor of the product.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Return the rank of the update."""
        return self.down.shape[0]

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether it is an update of a weight of this shape.

        A 1x1 convolution and a linear layer are the same product, so each takes the other's.
        """
        out, *inner = shape
        return (
            min(self.down.ndim, self.up.ndim) >= 2
            and self.up.shape[0] == out
            and _without_ones(self.up.shape[1:]) == (self.rank,)
            and _without_ones(self.down.shape[1:]) == _without_ones(inner)
        )

    def delta(self, shape: Sequence[int]) -> Tensor:
        """Return what is added to a weight of this shape: single precision, on the CPU."""
        down, up = (tensor.detach().float().cpu().flatten(1) for tensor in (self.down, self.up))
        return (up @ down).mul_(self.alpha / self.rank).reshape(*shape)


@torch.no_grad()
def merge_lora(
    weights: Mapping[str, Tensor], updates: Mapping[str, LoraWeights], scale: float
) -> None:
    """Add updates, times a scale, to the weights of the same names, in place.

    The sum is made in single precision, and products on the CPU, so that every device gets the
    same weights.
    """
    for name, update in updates.items():
        weight = weights[name]
        weight.copy_(weight.float() + update.delta(weight.shape).mul_(scale).to(weight.device))


def to_peft_state_dict(updates: Mapping[str, LoraWeights], component: str) -> dict[str, Tensor]:
    """Return the tensors of a LoRA file in the layout that peft and diffusers share.

    The factor alpha / rank is multiplied into `up`, so that the file means the same to every
    reader: without a word on alpha all of them take the factor to be one.
    """
    tensors = {}
    for name, update in updates.items():
        module = f"{component}.{name.removesuffix('.weight')}"
        up = update.up.detach() * (update.alpha / update.rank)
        tensors[f"{module}.lora_A.weight"] = update.down.detach().cpu().contiguous()
        tensors[f"{module}.lora_B.weight"] = up.cpu().contiguous()
    return tensors


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without the sides of a 1x1 kernel."""
    first, *kernel = shape
    return (first,) if math.prod(kernel) == 1 else (first, *kernel)

"""FLOPs and memory of a forward and backward pass, counted on the meta device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

_CONVOLUTIONS = ("aten.convolution", "aten.convolution_backward")


@dataclass(frozen=True)
class FlopCounts:
    """FLOPs of a pass by type of layer; a multiply-add counts as two.

    Norms and activations are not counted. Masked attention counts in full.

    Attributes:
        convolutions: Convolutions.
        linear: Linear layers.
        attention: Both matrix products of attention.
        by_module: All types together, by name of the module.
    """

    convolutions: int
    linear: int
    attention: int
    by_module: dict[str, int]

    @property
    def total(self) -> int:
        """Return the total."""
        return self.convolutions + self.linear + self.attention


def count_flops(network: nn.Module, call: Callable[[], object]) -> FlopCounts:
    """Count the FLOPs of a call of a network.

    Args:
        network: A network on the meta device. There, attention is two batched matrix products and
            linear layers are not batched, so they can be distinguished. Fused attention on a CPU is
            not counted.
        call: Runs the forward pass, and optionally the backward pass.

    Raises:
        ValueError: If the network is not on the meta device.
    """
    if elsewhere := {p.device.type for p in network.parameters()} - {"meta"}:
        raise ValueError(f"the network is on {elsewhere.pop()}; operations are counted on meta")
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts()
    kinds = {str(operator): number for operator, number in counts.get("Global", {}).items()}
    convolutions = sum(kinds.pop(name, 0) for name in _CONVOLUTIONS)
    attention = kinds.pop("aten.bmm", 0)
    by_module = {name: sum(numbers.values()) for name, numbers in counts.items()}
    by_module.pop("Global", None)
    return FlopCounts(convolutions, sum(kinds.values()), attention, by_module)


def count_parameters(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def profile_forward(
    build: Callable[[], nn.Module], call: Callable[[nn.Module], object]
) -> tuple[int, FlopCounts]:
    """Return the number of parameters and the FLOPs of the forward pass.

    Args:
        build: Builds the network; called in the context of the meta device.
        call: Runs the forward pass, in the same context.
    """
    with torch.device("meta"), torch.no_grad():
        network = build()
        return count_parameters(network), count_flops(network, lambda: call(network))


@dataclass(frozen=True)
class TrainingCost:
    """Cost of one forward and backward pass.

    Attributes:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass.
        saved_activation_numel: Number of floating-point values saved for the backward pass, without
            parameters.
        saved_other_bytes: Bytes of other saved tensors, such as masks.
    """

    forward: int
    backward: int
    saved_activation_numel: int
    saved_other_bytes: int
    by_module: dict[str, int]


def profile_training_step(network: nn.Module, loss: Callable[[], Tensor]) -> TrainingCost:
    """Return the cost of a forward and a backward pass.

    Attention is assumed to save its inputs and output, like fused kernels, and not its weights.

    Args:
        network: The trained network, on the meta device.
        loss: Runs the forward pass and returns the loss.
    """
    kept = _Kept(network)
    results: list[Tensor] = []
    with saved_tensors_hooks(kept.note, lambda tensor: tensor), _FusedAttention(kept):
        forward = count_flops(network, lambda: results.append(loss()))
    backward = count_flops(network, results[0].backward)
    numbers, others = kept.sizes()
    return TrainingCost(forward.total, backward.total, numbers, others, forward.by_module)


class _Kept:
    """Tensors saved for the backward pass, without parameters; each storage counts once."""

    def __init__(self, network: nn.Module) -> None:
        # keep references, because the id of a freed storage may be reused
        self.known = {_memory(parameter): parameter for parameter in network.parameters()}
        self.tensors: dict[int, Tensor] = {}

    def note(self, tensor: Tensor) -> Tensor:
        """Record a tensor and return it."""
        if _memory(tensor) not in self.known:
            self.tensors.setdefault(_memory(tensor), tensor)
        return tensor

    def sizes(self) -> tuple[int, int]:
        """Return the number of floating-point values, and the bytes of other tensors."""
        numbers, others = 0, 0
        for tensor in self.tensors.values():
            size = tensor.untyped_storage().nbytes()
            if tensor.is_floating_point():
                numbers += size // tensor.element_size()
            else:
                others += size
        return numbers, others


class _FusedAttention(TorchFunctionMode):
    """Counts the tensors that fused attention saves; the meta device runs separate products."""

    def __init__(self, kept: _Kept) -> None:
        self.kept = kept
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the function returns
        """Call a function of torch."""
        given = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            mixed = func(*args, **given)
        if mixed.requires_grad:
            for tensor in (*args[:3], *(given[n] for n in ("query", "key", "value") if n in given)):
                self.kept.note(tensor)
            self.kept.note(mixed)
        return mixed


def _memory(tensor: Tensor) -> int:
    # meta tensors have no address, but each storage is a distinct object
    return tensor.untyped_storage()._cdata

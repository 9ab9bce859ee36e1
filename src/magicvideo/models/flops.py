"""Operations and memory of a pass through a network, counted on the meta device."""

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
    """Operations of a pass by kind of layer, two for each multiplication with its addition.

    Norms and activations count nothing. Attention is counted in full: masks save nothing.

    Attributes:
        convolutions: Of all kernels.
        linear: Linear layers.
        attention: The two products of every attention.
        by_module: All kinds together, by the name of each module that was passed.
    """

    convolutions: int
    linear: int
    attention: int
    by_module: dict[str, int]

    @property
    def total(self) -> int:
        """Return the sum of all kinds."""
        return self.convolutions + self.linear + self.attention


def count_flops(network: nn.Module, call: Callable[[], object]) -> FlopCounts:
    """Count the operations of a call of a network.

    Args:
        network: On the meta device. There attention is two batched products, and linear layers
            are never batched, so kinds can be distinguished. A CPU would not count fused
            attention.
        call: Passes the network, forward or also backward.

    Raises:
        ValueError: If the network is on another device.
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
    """Return a network's parameters and the operations of its forward pass.

    Args:
        build: Returns the network; it is called with meta as the device.
        call: Passes the network once; new tensors in it are on meta.
    """
    with torch.device("meta"), torch.no_grad():
        network = build()
        return count_parameters(network), count_flops(network, lambda: call(network))


@dataclass(frozen=True)
class TrainingCost:
    """What one forward and backward pass costs.

    Attributes:
        forward: Operations of the forward pass.
        backward: Operations of the backward pass.
        saved_activation_numel: Floating-point numbers that the forward pass keeps for the backward
            pass, parameters not counted.
        saved_other_bytes: Bytes of what it keeps beside them, such as masks.
    """

    forward: int
    backward: int
    saved_activation_numel: int
    saved_other_bytes: int


def profile_training_step(network: nn.Module, loss: Callable[[], Tensor]) -> TrainingCost:
    """Return the cost of a forward and a backward pass.

    Attention is taken to keep its inputs and its result, as fused kernels do, and not its weights.

    Args:
        network: What is trained, on the meta device.
        loss: Passes it and returns one number; new tensors in it are on meta.
    """
    kept = _Kept(network)
    results: list[Tensor] = []
    with saved_tensors_hooks(kept.note, lambda tensor: tensor), _FusedAttention(kept):
        forward = count_flops(network, lambda: results.append(loss()))
    backward = count_flops(network, results[0].backward)
    numbers, others = kept.sizes()
    return TrainingCost(forward.total, backward.total, numbers, others)


class _Kept:
    """Tensors saved for the backward pass, each storage once, without parameters."""

    def __init__(self, network: nn.Module) -> None:
        # hold all tensors: a freed storage's identity could be used again
        self.known = {_memory(parameter): parameter for parameter in network.parameters()}
        self.tensors: dict[int, Tensor] = {}

    def note(self, tensor: Tensor) -> Tensor:
        """Record a tensor and return it."""
        if _memory(tensor) not in self.known:
            self.tensors.setdefault(_memory(tensor), tensor)
        return tensor

    def sizes(self) -> tuple[int, int]:
        """Return how many floating-point numbers there are, and the bytes of all else."""
        numbers, others = 0, 0
        for tensor in self.tensors.values():
            size = tensor.untyped_storage().nbytes()
            if tensor.is_floating_point():
                numbers += size // tensor.element_size()
            else:
                others += size
        return numbers, others


class _FusedAttention(TorchFunctionMode):
    """Counts for attention what fused kernels save; the meta device runs separate products."""

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
    # tensors on the meta device have no address, but each storage is an object of its own
    return tensor.untyped_storage()._cdata

"""What a pass through a network costs, counted on the meta device: no memory, no arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_CONVOLUTIONS = ("aten.convolution", "aten.convolution_backward")


@dataclass(frozen=True)
class Flops:
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


def count_flops(network: nn.Module, call: Callable[[], object]) -> Flops:
    """Return the operations of what `call` does with a network.

    Args:
        network: On the meta device. There attention is two batched products, and linear layers
            are never batched, so kinds can be told apart; on a CPU attention would count nothing.
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
    return Flops(convolutions, sum(kinds.values()), attention, by_module)


def count_parameters(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_forward(
    build: Callable[[], nn.Module], call: Callable[[nn.Module], object]
) -> tuple[int, Flops]:
    """Return a network's parameters and the operations of its forward pass.

    Args:
        build: Returns the network; it is called with meta as the device.
        call: Passes the network once; new tensors in it are on meta.
    """
    with torch.device("meta"), torch.no_grad():
        network = build()
        return count_parameters(network), count_flops(network, lambda: call(network))

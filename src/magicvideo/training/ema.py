"""The exponential moving average of weights: what previews show and what is kept."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from magicvideo.training.distributed import distribute_like, to_dtensor, to_local


class EMA:
    """Averages of a network's parameters.

    The decay grows from 0.1 to its ceiling with the number of updates, so that early averages
    forget the random start: min(decay, (1 + step) / (10 + step)). Where weights are sharded each
    process averages its part.

    Args:
        network: Its parameters are averaged; buffers are taken as they are.
        decay: The ceiling.
        device: Where the averages are kept; None is beside the weights.
    """

    def __init__(
        self, network: nn.Module, decay: float, device: torch.device | None = None
    ) -> None:
        self.decay = decay
        self.shadow = {
            name: to_local(p).detach().to(device or p.device, copy=True)
            for name, p in network.named_parameters()
        }

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the averages towards the weights after update number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [
            to_local(p).detach().to(self.shadow[name].device)
            for name, p in network.named_parameters()
        ]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1 - decay)

    @torch.no_grad()
    def load(self, network: nn.Module, averages: Mapping[str, Tensor]) -> None:
        """Take over saved averages, which are whole; the network tells how they are cut."""
        for name, parameter in network.named_parameters():
            self.shadow[name].copy_(to_local(distribute_like(averages[name], parameter)))

    def tensors(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the averages by name, cut as the network's parameters are."""
        for name, parameter in network.named_parameters():
            yield name, to_dtensor(self.shadow[name], parameter)

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange weights and averages; a second call exchanges them back."""
        for name, parameter in network.named_parameters():
            average, weights = self.shadow[name], to_local(parameter)
            kept = weights.detach().clone()
            weights.copy_(average)
            average.copy_(kept)

"""The exponential moving average of weights: what previews show and what is kept."""

import torch
from torch import Tensor, nn


class Ema:
    """Averages of a network's parameters.

    The decay grows from 0.1 to its ceiling with the number of updates, so that early averages
    forget the random start: min(decay, (1 + step) / (10 + step)).

    Args:
        network: Its parameters are averaged; buffers are taken as they are.
        decay: The ceiling.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the averages towards the weights after update number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach() for _, p in network.named_parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1 - decay)

    @torch.no_grad()
    def load(self, shadow: dict[str, Tensor]) -> None:
        """Take over saved averages."""
        for name, value in self.shadow.items():
            value.copy_(shadow[name])

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange weights and averages; a second call exchanges them back."""
        for name, parameter in network.named_parameters():
            average = self.shadow[name]
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)

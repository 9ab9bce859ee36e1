"""Exponential moving averages of weights: what previews show and what a stage writes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from magicvideo.training.distributed import (
    DistributedContext,
    distribute_like,
    gather_full,
    to_dtensor,
    to_local,
)


class EMA:
    """Exponential moving average of a network's trainable parameters.

    The decay rises to its ceiling, min(decay, (1 + step) / (10 + step)), so that the average
    forgets the initial weights within a few updates. Frozen parameters equal their average and are
    left out. Where weights are sharded, every process averages its shard.

    Args:
        network: Its trainable parameters are averaged.
        decay: The ceiling.
        device: Where the averages are kept; None: beside the weights.
    """

    def __init__(
        self, network: nn.Module, decay: float, device: torch.device | None = None
    ) -> None:
        self.decay = decay
        self.shadow = {
            name: to_local(p).detach().to(device or p.device, copy=True)
            for name, p in network.named_parameters()
            if p.requires_grad
        }

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the averages towards the weights after update number `step` (from 0)."""
        # 0.1 at the first update: the average moves 9/10 of the way to the weights
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [
            to_local(p).detach().to(self.shadow[name].device)
            for name, p in network.named_parameters()
            if name in self.shadow
        ]
        # average <- average + (1 - decay) (weights - average), all parameters in one call
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1 - decay)

    @torch.no_grad()
    def load(self, network: nn.Module, averages: Mapping[str, Tensor]) -> None:
        """Copy saved averages, whole tensors or shards, into place."""
        for name, parameter in network.named_parameters():
            if name in self.shadow:
                self.shadow[name].copy_(to_local(distribute_like(averages[name], parameter)))

    def tensors(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the averages by name, sharded as the network's parameters are."""
        for name, parameter in network.named_parameters():
            if name in self.shadow:
                yield name, to_dtensor(self.shadow[name], parameter)

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange weights and averages; a second call exchanges them back."""
        for name, parameter in network.named_parameters():
            if name not in self.shadow:
                continue
            average, weights = self.shadow[name], to_local(parameter)
            kept = weights.detach().clone()
            weights.copy_(average)
            average.copy_(kept)


@contextmanager
def ema_weights(
    network: nn.Module, trained: nn.Module, ema: EMA, context: DistributedContext
) -> Iterator[None]:
    """Put the averages into the main process's network for the duration of the block.

    Args:
        network: Unsharded; it takes the averages and is set to evaluation.
        trained: What is trained: `network` itself, or its sharded copy.
        ema: The averages of `trained`.
        context: All its processes enter together.
    """
    is_whole = network is trained
    if is_whole and context.is_main:
        ema.swap(network)
    elif not is_whole:
        averages = gather_full(ema.tensors(trained), keep=context.is_main)
        if context.is_main:
            network.load_state_dict(averages, strict=False)  # the rest is not trained
            network.to(context.device)
    network.eval()
    try:
        yield
    finally:
        network.train()
        if is_whole and context.is_main:
            ema.swap(network)
        elif not is_whole:
            network.to("cpu")

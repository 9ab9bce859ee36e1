"""The blocks of a network: what is sharded, compiled and computed again one by one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from magicvideo.errors import UserError


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the modules of a network's outermost lists, and its middle block.

    That is what diffusers' and transformers' networks and ours have in common: levels or layers in
    lists, and between the levels going down and those going up a `mid_block`.
    """
    return list(_blocks(network))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from _items(child)
        elif name == "mid_block":
            yield child
        else:
            yield from _blocks(child)


def _items(modules: nn.ModuleList) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.ModuleList):  # no unit of its own, though it may be callable
            yield from _items(module)
        else:
            yield module


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile a network block by block; one without blocks is compiled whole.

    Args:
        network: Keeps its parameters and their names.
        backend: Of `torch.compile`.
    """
    for block in blocks_of(network) or [network]:
        block.forward = torch.compile(block.forward, backend=backend)


def checkpoint_activations(network: nn.Module, stage: str) -> None:
    """Keep the inputs of layers alone for the backward pass, which computes the rest again.

    Args:
        network: A network whose class has the switch of diffusers or transformers, or holds a
            `unet` that has it.
        stage: Its stage, to name in the error.

    Raises:
        UserError: If its class has no such switch.
    """
    switched: Any = getattr(network, "unet", network)
    if isinstance(switched, PreTrainedModel):
        switched.gradient_checkpointing_enable({"use_reentrant": False})
    elif getattr(switched, "_supports_gradient_checkpointing", False):
        switched.enable_gradient_checkpointing()
    else:
        raise UserError(
            f"{stage}.gradient_checkpointing: a {type(network).__name__} has no such switch; "
            "leave it out, or make batch_size smaller and accumulate larger."
        )

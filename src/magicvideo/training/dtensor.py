"""Tensors of which each process may hold a part: whole ones out of parts, and back."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in the same memory: all, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor, or the part of it that this process holds of `parameter`."""
    if not isinstance(parameter, DTensor):
        return whole
    # every process has the whole, so nothing need be sent
    return distribute_tensor(
        whole.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,
    )


def sharded_like(part: Tensor, parameter: Tensor) -> Tensor:
    """Return parts, one on each process, as the one tensor that `parameter` is cut like."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


@torch.no_grad()
def gathered(tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Return whole tensors on the CPU by name; all processes have to call it together.

    Args:
        tensors: The same names in the same order on all processes.
        keep: Whether this process wants them; else it helps, and gets nothing.
    """
    found = {}
    for name, tensor in tensors:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.detach().to("cpu").contiguous()
    return found

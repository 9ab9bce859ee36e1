"""The processes of a run: which one this is, what they agree on, and who holds which weights."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, patch_environment
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from magicvideo.errors import UserError
from magicvideo.train.blocks import blocks_of

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
# what the transports say when a process at the other end is gone
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def join() -> PartialState:
    """Join the other processes of this launch, if there are any, and tell which one this is.

    Raises:
        UserError: If the launch asks for what is not supported or not installed.
    """
    if _is_set(_DEEPSPEED):
        raise UserError(
            "This launch asks for DeepSpeed, whose checkpoints magicvideo cannot read back; FSDP2 "
            "shards the same state: use examples/accelerate/fsdp2.yaml."
        )
    if _is_set(_FSDP) and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP has to be version 2: set fsdp_version: 2 in accelerate's settings.")
    if _is_set(_FSDP) and _is_set("FSDP_OFFLOAD_PARAMS"):
        raise UserError("Weights cannot be offloaded: set fsdp_offload_params: false.")
    return PartialState(cpu=_is_set("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


@dataclass(frozen=True)
class Processes:
    """This process and those that train with it.

    Attributes:
        accelerator: Knows the device, the precision and the group.
        shards: Whether each process holds a part of the weights (FSDP2), and not all (DDP).
    """

    accelerator: Accelerator
    shards: bool

    @classmethod
    def of_launch(cls, mixed_precision: Literal["no", "bf16", "fp16"]) -> "Processes":
        """Return the processes of this launch.

        Raises:
            UserError: If the launch asks for what is not supported.
        """
        state = join()
        if _is_set(_FSDP) and mixed_precision == "fp16":
            raise UserError("mixed_precision=fp16 does not go with FSDP; set it to bf16.")
        # networks are sharded here, by their own blocks, so accelerate need not know of it
        with patch_environment(**{_FSDP: "false"}):
            accelerator = Accelerator(
                mixed_precision=mixed_precision, cpu=state.device.type == "cpu"
            )
        return cls(accelerator, shards=_is_set(_FSDP) and state.num_processes > 1)

    @property
    def count(self) -> int:
        """Return how many there are."""
        return int(self.accelerator.num_processes)

    @property
    def index(self) -> int:
        """Return which one this is."""
        return int(self.accelerator.process_index)

    @property
    def is_first(self) -> bool:
        """Return whether this is the one that writes files and speaks."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until all are here."""
        self.accelerator.wait_for_everyone()

    def sums(self, values: list[float]) -> list[float]:
        """Return the sums of values over all processes, equal on all of them."""
        if self.count == 1:
            return values
        numbers = torch.tensor(values, device=self.accelerator.device, dtype=torch.float64)
        distributed.all_reduce(numbers)
        return list(numbers.tolist())

    def told(self, path: Path | None) -> Path | None:
        """Return the path that the first process has, on all of them."""
        told = [path]
        if self.count > 1:
            broadcast_object_list(told)
        return told[0]

    def place(self, network: nn.Module) -> nn.Module:
        """Return what this process trains: the network on its device, or its part of a copy.

        Where weights are sharded the network itself stays whole, on the CPU, for what the first
        process makes of the averaged weights. A network with a number for a parameter, such as
        CLIP's temperature, cannot be sharded and is copied to every process.
        """
        if not self.shards or any(p.ndim == 0 for p in network.parameters()):
            network.to(self.accelerator.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return network
        return _sharded(network, self.accelerator.device, self.count)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return what is called in training, for gradients that are means over processes."""
        if isinstance(network, FSDPModule):
            return network
        wrapped: nn.Module = self.accelerator.prepare_model(network)
        return wrapped

    @contextmanager
    def accumulating(self, network: nn.Module, *, is_last: bool) -> Iterator[None]:
        """Let processes exchange gradients with the last of the accumulated batches alone."""
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(is_last)
            yield
        elif isinstance(network, DistributedDataParallel) and not is_last:
            with network.no_sync():
                yield
        else:
            yield

    def has_lost_one(self, error: RuntimeError) -> bool:
        """Return whether an error says that another process is gone."""
        is_theirs = isinstance(error, distributed.DistError)
        return self.count > 1 and (is_theirs or any(sign in str(error) for sign in _LOST))


def _sharded(network: nn.Module, device: torch.device, count: int) -> nn.Module:
    """Return a copy of a network, cut over the processes block by block."""
    sharded = copy.deepcopy(network).to(device)
    mesh = init_device_mesh(device.type, (count,))
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    for block in blocks_of(sharded):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(sharded, mesh=mesh)
    # a parameter's own attributes are lost on the way
    for own, part in zip(network.parameters(), sharded.parameters(), strict=True):
        vars(part).update(vars(own))
    return sharded

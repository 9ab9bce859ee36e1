"""Distributed training: processes, collectives, DDP, FSDP2 and DTensors.

DDP replicates the network; FSDP2 shards it. The launcher selects one with accelerate's environment
variables (`accelerate launch --config_file examples/accelerate/fsdp2.yaml`).
"""

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, patch_environment
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from magicvideo.errors import UserError

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
# errors of the transports after the failure of another process
_PEER_FAILURES = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def init_distributed() -> PartialState:
    """Initialize the process group of this launch, if any.

    Raises:
        UserError: If the launch options are not supported.
    """
    if _is_set(_DEEPSPEED):
        raise UserError(
            "DeepSpeed is not supported; FSDP2 shards weights, gradients and optimizer states: "
            "launch with examples/accelerate/fsdp2.yaml."
        )
    if _is_set(_FSDP) and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP has to be version 2: set fsdp_version: 2 in accelerate's settings.")
    if _is_set(_FSDP) and _is_set("FSDP_OFFLOAD_PARAMS"):
        raise UserError("Weights cannot be offloaded: set fsdp_offload_params: false.")
    on_cpu = _is_set("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a distributed run, seen from this one.

    Attributes:
        accelerator: Device, precision and process group.
        shards: Whether weights are sharded (FSDP2) instead of replicated (DDP).
        host_group: CPU process group, for communication without synchronizing with the device; None
            for the default group.
        checkpoint_group: CPU process group of the thread that writes checkpoints.
    """

    accelerator: Accelerator
    shards: bool
    host_group: distributed.ProcessGroup | None = None
    checkpoint_group: distributed.ProcessGroup | None = None

    @classmethod
    def from_env(cls, mixed_precision: Literal["no", "bf16", "fp16"]) -> "DistributedContext":
        """Create the context of this launch.

        Raises:
            UserError: If the launch options are not supported.
        """
        if _is_set(_FSDP) and mixed_precision == "fp16":
            raise UserError("mixed_precision=fp16 is not supported with FSDP; set it to bf16.")
        state = init_distributed()
        AcceleratorState._reset_state()  # it has one precision, stages may differ
        # sharding is done here, not by accelerate
        with patch_environment(**{_FSDP: "false"}):
            accelerator = Accelerator(
                mixed_precision=mixed_precision, cpu=state.device.type == "cpu"
            )
        if state.num_processes == 1:
            return cls(accelerator, shards=False)
        on_cpu = state.device.type == "cpu"
        return cls(
            accelerator,
            shards=_is_set(_FSDP),
            host_group=None if on_cpu else distributed.new_group(backend="gloo"),
            checkpoint_group=distributed.new_group(backend="gloo"),
        )

    @property
    def device(self) -> torch.device:
        """Return the device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Return the rank of this process."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """Sum host values over all processes, without synchronizing with the device."""
        if self.world_size == 1:
            return values
        numbers = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(numbers, group=self.host_group)
        return list(numbers.tolist())

    def broadcast_path(self, path: Path | None) -> Path | None:
        """Return the main process's path on all processes."""
        box = [path]
        if self.world_size > 1:
            broadcast_object_list(box)
        return box[0]

    def shard_or_move(self, network: nn.Module) -> nn.Module:
        """Return the network to train: moved to the device, or a sharded copy.

        With sharding, the network itself stays unsharded on the CPU and gets the EMA weights for
        previews and output. A network with a scalar parameter, such as CLIP's temperature, cannot
        be sharded and is replicated.
        """
        if not self.shards or any(p.ndim == 0 for p in network.parameters()):
            network.to(self.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return network
        return _shard(network, self.device, self.world_size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap the network for training, so that gradients are averaged over processes."""
        if isinstance(network, FSDPModule):
            return network
        wrapped: nn.Module = self.accelerator.prepare_model(network)
        if isinstance(wrapped, DistributedDataParallel):
            # buffers are constants here, such as CLIP's positions. Broadcasting them at each
            # forward pass would modify them in place before the backward pass of an earlier one,
            # since an update may have two forward passes (clips and frames)
            wrapped.broadcast_buffers = False
        return wrapped

    def is_peer_failure(self, error: RuntimeError) -> bool:
        """Return whether an error means that another process failed."""
        is_theirs = isinstance(error, distributed.DistError)
        return self.world_size > 1 and (
            is_theirs or any(sign in str(error) for sign in _PEER_FAILURES)
        )


def sync_gradients(network: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Return a context in which backward passes synchronize gradients only if `enabled`."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(enabled)
    elif isinstance(network, DistributedDataParallel) and not enabled:
        return network.no_sync()
    return nullcontext()


# --- units of sharding, compilation and activation checkpointing ---


def wrap_units(network: nn.Module) -> list[nn.Module]:
    """Return the outermost modules of the classes in `_no_split_modules`.

    Models of diffusers, transformers and this package declare there the blocks that are sharded and
    compiled as units.
    """
    names = {
        name for m in network.modules() for name in getattr(m, "_no_split_modules", None) or ()
    }
    return list(_outermost(network, names))


def _outermost(module: nn.Module, class_names: set[str]) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child).__name__ in class_names:
            yield child
        else:
            yield from _outermost(child, class_names)


def _shard(network: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """Copy a network and shard each unit over all processes."""
    sharded = copy.deepcopy(network).to(device)
    mesh = init_device_mesh(device.type, (world_size,))
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    for unit in wrap_units(sharded):
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(sharded, mesh=mesh)
    return sharded


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile each unit of a network, or the whole network if it declares no units.

    Args:
        network: The network; parameter names are unchanged.
        backend: Backend of `torch.compile`.
    """
    for unit in wrap_units(network) or [network]:
        unit.forward = torch.compile(unit.forward, backend=backend)


def enable_activation_checkpointing(network: nn.Module, stage: str) -> None:
    """Enable activation checkpointing: save only the inputs of blocks.

    Args:
        network: A model of diffusers or transformers, or a module with one as `unet`.
        stage: Name of its stage, for the error message.

    Raises:
        UserError: If the model does not support it.
    """
    model: Any = getattr(network, "unet", network)
    if isinstance(model, PreTrainedModel):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    elif getattr(model, "_supports_gradient_checkpointing", False):
        model.enable_gradient_checkpointing()
    else:
        raise UserError(
            f"{stage}.gradient_checkpointing: {type(network).__name__} does not support it; "
            "disable it, or decrease batch_size and increase gradient_accumulation_steps."
        )


# --- conversions between full tensors and DTensors ---


def to_local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor as a view; the tensor itself if not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distribute_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Shard a tensor like `parameter`; it must be equal on all processes."""
    if not isinstance(parameter, DTensor) or isinstance(whole, DTensor):
        return whole
    # every process has the full tensor: no communication
    return distribute_tensor(
        whole.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,
    )


def to_dtensor(local: Tensor, parameter: Tensor) -> Tensor:
    """Combine the local shards of all processes into a DTensor sharded like `parameter`."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


@torch.no_grad()
def gather_full(tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Gather full tensors on the CPU, by name; all processes must call this.

    Args:
        tensors: The same names in the same order on all processes.
        keep: Whether this process needs the result; others only participate.
    """
    found = {}
    for name, tensor in tensors:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.detach().to("cpu").contiguous()
    return found

"""Training on several processes: who this one is, what all agree on, and who holds which weights.

DDP copies the network to every process; FSDP2 shards it. The launch says which, by accelerate's
environment variables (`accelerate launch --config_file examples/accelerate/fsdp2.yaml`).
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
# what the transports say when the process at the other end is gone
_PEER_FAILURES = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def init_distributed() -> PartialState:
    """Join the process group of this launch, if there is one.

    Raises:
        UserError: If the launch asks for what is not supported.
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
    """This process and those that train with it.

    Attributes:
        accelerator: Knows the device, the precision and the process group.
        shards: Whether each process holds a shard of the weights (FSDP2), not all of them (DDP).
        host_group: Process group over CPUs, for agreements that must not wait for the device;
            None: the default group.
        checkpoint_group: The same for the thread that writes checkpoints.
    """

    accelerator: Accelerator
    shards: bool
    host_group: distributed.ProcessGroup | None = None
    checkpoint_group: distributed.ProcessGroup | None = None

    @classmethod
    def from_env(cls, mixed_precision: Literal["no", "bf16", "fp16"]) -> "DistributedContext":
        """Return the processes of this launch.

        Raises:
            UserError: If the launch asks for what is not supported.
        """
        if _is_set(_FSDP) and mixed_precision == "fp16":
            raise UserError("mixed_precision=fp16 does not go with FSDP; set it to bf16.")
        state = init_distributed()
        AcceleratorState._reset_state()  # it holds one precision, and each stage has its own
        # sharding is decided here, so accelerate need not know of it
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
        """Return the number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that writes files and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.accelerator.wait_for_everyone()

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """Return sums over all processes of values on the host, without a wait for the device."""
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
        """Return what this process trains: the network on its device, or its shard of a copy.

        Where weights are sharded, the network itself stays whole, on the CPU, and takes the
        averaged weights for previews and for the output. A network with a scalar parameter, such
        as CLIP's temperature, cannot be sharded and is copied to every process.
        """
        if not self.shards or any(p.ndim == 0 for p in network.parameters()):
            network.to(self.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return network
        return _shard(network, self.device, self.world_size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return what is called in training, so that gradients are means over processes."""
        if isinstance(network, FSDPModule):
            return network
        wrapped: nn.Module = self.accelerator.prepare_model(network)
        if isinstance(wrapped, DistributedDataParallel):
            # buffers are constants here, such as CLIP's positions. To send them at each forward
            # pass would spoil the backward pass of the one before, as clips and frames have both
            wrapped.broadcast_buffers = False
        return wrapped

    def is_peer_failure(self, error: RuntimeError) -> bool:
        """Return whether an error says that another process is gone."""
        is_theirs = isinstance(error, distributed.DistError)
        return self.world_size > 1 and (
            is_theirs or any(sign in str(error) for sign in _PEER_FAILURES)
        )


def sync_gradients(network: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Return a block whose backward passes average gradients over processes only if `enabled`."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(enabled)
    elif isinstance(network, DistributedDataParallel) and not enabled:
        return network.no_sync()
    return nullcontext()


# --- modules that are sharded, compiled and recomputed one by one ---


def wrap_units(network: nn.Module) -> list[nn.Module]:
    """Return the outermost modules of the classes that the network's models declare.

    diffusers', transformers' and our models name them in `_no_split_modules`: blocks that belong
    on one device and are sharded and compiled as one.
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
    """Return a copy of a network, sharded unit by unit over all processes."""
    sharded = copy.deepcopy(network).to(device)
    mesh = init_device_mesh(device.type, (world_size,))
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    for unit in wrap_units(sharded):
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(sharded, mesh=mesh)
    return sharded


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile a network unit by unit; one that declares no units is compiled whole.

    Args:
        network: Keeps its parameters and their names.
        backend: Of `torch.compile`.
    """
    for unit in wrap_units(network) or [network]:
        unit.forward = torch.compile(unit.forward, backend=backend)


def enable_activation_checkpointing(network: nn.Module, stage: str) -> None:
    """Keep only the inputs of blocks for the backward pass, which recomputes the rest.

    Args:
        network: A model of diffusers or transformers, or a module that holds one as `unet`.
        stage: Its stage, to name in the error.

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
            f"{stage}.gradient_checkpointing: {type(network).__name__} does not support it; leave "
            "it out, or make batch_size smaller and gradient_accumulation_steps larger."
        )


# --- conversions between full tensors and DTensors ---


def to_local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, in the same memory; all of it if not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distribute_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor sharded like `parameter`. A full tensor is the same on all processes."""
    if not isinstance(parameter, DTensor) or isinstance(whole, DTensor):
        return whole
    # every process has the full tensor, so nothing need be sent
    return distribute_tensor(
        whole.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,
    )


def to_dtensor(local: Tensor, parameter: Tensor) -> Tensor:
    """Return shards, one on each process, as one tensor that is sharded like `parameter`."""
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
    """Return full tensors on the CPU by name; all processes call it together.

    Args:
        tensors: The same names in the same order on all processes.
        keep: Whether this process wants them; the others take part and get nothing.
    """
    found = {}
    for name, tensor in tensors:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.detach().to("cpu").contiguous()
    return found

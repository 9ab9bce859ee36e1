"""The processes of a run: which one this is, what they agree on, and who holds which weights."""

import copy
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, patch_environment
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from magicvideo.errors import UserError


def wrap_units(network: nn.Module) -> list[nn.Module]:
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
    for block in wrap_units(network) or [network]:
        block.forward = torch.compile(block.forward, backend=backend)


def enable_activation_checkpointing(network: nn.Module, stage: str) -> None:
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
            "leave it out, or make batch_size smaller and gradient_accumulation_steps larger."
        )


def to_local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in the same memory: all, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distribute_like(whole: Tensor, parameter: Tensor) -> Tensor:
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


def to_dtensor(part: Tensor, parameter: Tensor) -> Tensor:
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
def gather_full(tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
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


_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
# what the transports say when a process at the other end is gone
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def init_distributed() -> PartialState:
    """Join the other processes of this launch, if there are any, and tell which one this is.

    Raises:
        UserError: If the launch asks for what is not supported or not installed.
    """
    if _is_set(_DEEPSPEED):
        _check_deepspeed()
    if _is_set(_FSDP) and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP has to be version 2: set fsdp_version: 2 in accelerate's settings.")
    if _is_set(_FSDP) and _is_set("FSDP_OFFLOAD_PARAMS"):
        raise UserError("Weights cannot be offloaded: set fsdp_offload_params: false.")
    # DeepSpeed joins the group that is there; accelerate would begin one by its rules
    with patch_environment(**{_DEEPSPEED: "false"}):
        on_cpu = _is_set("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        return PartialState(cpu=on_cpu)


def _check_deepspeed() -> None:
    stage = _asked_of_deepspeed("ZERO_STAGE", "2")
    if stage not in ("1", "2"):
        raise UserError(
            f"zero_stage={stage} is not supported; take 1 or 2, or FSDP2, which shares out weights "
            "too: examples/accelerate/fsdp2.yaml."
        )
    for name in ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE", "CONFIG_FILE"):
        if _asked_of_deepspeed(name, "none") != "none":
            raise UserError(
                f"deepspeed_{name.lower()} is not supported: leave it out of accelerate's settings."
            )
    if find_spec("deepspeed") is None:
        raise UserError(
            "This launch asks for DeepSpeed, which is not installed: pip install "
            "'magicvideo[deepspeed]', or use examples/accelerate/fsdp2.yaml."
        )


def _asked_of_deepspeed(name: str, default: str) -> str:
    return os.environ.get(f"ACCELERATE_DEEPSPEED_{name}", default)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


@dataclass(frozen=True)
class DistributedContext:
    """This process and those that train with it.

    Attributes:
        accelerator: Knows the device, the precision and the group.
        shards: Whether each process holds a part of the weights (FSDP2), and not all (DDP).
        zero_stage: Of DeepSpeed, 1 or 2, where it shares out moments, or moments and gradients.
    """

    accelerator: Accelerator
    shards: bool
    zero_stage: int | None

    @classmethod
    def from_env(cls, mixed_precision: Literal["no", "bf16", "fp16"]) -> "DistributedContext":
        """Return the processes of this launch.

        Raises:
            UserError: If the launch asks for what is not supported.
        """
        if (_is_set(_FSDP) or _is_set(_DEEPSPEED)) and mixed_precision == "fp16":
            raise UserError(
                "mixed_precision=fp16 does not go with FSDP or DeepSpeed; set it to bf16."
            )
        state = init_distributed()
        AcceleratorState._reset_state()  # it holds one precision, and each stage has its own
        # what is shared out is decided here, so accelerate need not know of it
        with patch_environment(**{_FSDP: "false", _DEEPSPEED: "false"}):
            accelerator = Accelerator(
                mixed_precision=mixed_precision, cpu=state.device.type == "cpu"
            )
        is_alone = state.num_processes == 1
        uses_zero = _is_set(_DEEPSPEED) and not is_alone
        return cls(
            accelerator,
            shards=_is_set(_FSDP) and not is_alone,
            zero_stage=int(_asked_of_deepspeed("ZERO_STAGE", "2")) if uses_zero else None,
        )

    @property
    def world_size(self) -> int:
        """Return how many there are."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Return which one this is."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Return whether this is the one that writes files and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all are here."""
        self.accelerator.wait_for_everyone()

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """Return the sums of values over all processes, equal on all of them."""
        if self.world_size == 1:
            return values
        numbers = torch.tensor(values, device=self.accelerator.device, dtype=torch.float64)
        distributed.all_reduce(numbers)
        return list(numbers.tolist())

    def broadcast_path(self, path: Path | None) -> Path | None:
        """Return the path that the first process has, on all of them."""
        told = [path]
        if self.world_size > 1:
            broadcast_object_list(told)
        return told[0]

    def shard_or_move(self, network: nn.Module) -> nn.Module:
        """Return what this process trains: the network on its device, or its part of a copy.

        Where weights are sharded the network itself stays whole, on the CPU, for what the first
        process makes of the averaged weights. A network with a number for a parameter, such as
        CLIP's temperature, cannot be sharded and is copied to every process.
        """
        if not self.shards or _has_number(network):
            network.to(self.accelerator.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return network
        return _sharded(network, self.accelerator.device, self.world_size)

    def uses_zero(self, network: nn.Module) -> bool:
        """Return whether DeepSpeed shares out a network's moments; it takes no numbers either."""
        return self.zero_stage is not None and not _has_number(network)

    def is_peer_failure(self, error: RuntimeError) -> bool:
        """Return whether an error says that another process is gone."""
        is_theirs = isinstance(error, distributed.DistError)
        return self.world_size > 1 and (is_theirs or any(sign in str(error) for sign in _LOST))


def _has_number(network: nn.Module) -> bool:
    return any(p.ndim == 0 for p in network.parameters())


def _sharded(network: nn.Module, device: torch.device, count: int) -> nn.Module:
    """Return a copy of a network, cut over the processes block by block."""
    sharded = copy.deepcopy(network).to(device)
    mesh = init_device_mesh(device.type, (count,))
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    for block in wrap_units(sharded):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(sharded, mesh=mesh)
    # a parameter's own attributes are lost on the way
    for own, part in zip(network.parameters(), sharded.parameters(), strict=True):
        vars(part).update(vars(own))
    return sharded

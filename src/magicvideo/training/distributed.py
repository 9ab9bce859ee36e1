"""The processes of a run: which one this is, what they agree on, and who holds which weights."""

import copy
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, patch_environment
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from magicvideo.errors import UserError
from magicvideo.training.module_wrapping import blocks_of

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
# what the transports say when a process at the other end is gone
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def join() -> PartialState:
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
class Processes:
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
    def of_launch(cls, mixed_precision: Literal["no", "bf16", "fp16"]) -> "Processes":
        """Return the processes of this launch.

        Raises:
            UserError: If the launch asks for what is not supported.
        """
        if (_is_set(_FSDP) or _is_set(_DEEPSPEED)) and mixed_precision == "fp16":
            raise UserError(
                "mixed_precision=fp16 does not go with FSDP or DeepSpeed; set it to bf16."
            )
        state = join()
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
        if not self.shards or _has_number(network):
            network.to(self.accelerator.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return network
        return _sharded(network, self.accelerator.device, self.count)

    def uses_zero(self, network: nn.Module) -> bool:
        """Return whether DeepSpeed shares out a network's moments; it takes no numbers either."""
        return self.zero_stage is not None and not _has_number(network)

    def has_lost_one(self, error: RuntimeError) -> bool:
        """Return whether an error says that another process is gone."""
        is_theirs = isinstance(error, distributed.DistError)
        return self.count > 1 and (is_theirs or any(sign in str(error) for sign in _LOST))


def _has_number(network: nn.Module) -> bool:
    return any(p.ndim == 0 for p in network.parameters())


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

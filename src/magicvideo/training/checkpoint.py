"""Checkpoints of a stage, written atomically, and EMA weights.

Unsharded weights are written as safetensors by one process. Weights sharded by FSDP2 are written by
all processes with torch.distributed.checkpoint, also as safetensors. Large checkpoints are written
in the background; training only waits for the copy to host memory.
"""

import contextlib
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from magicvideo.atomic_io import PARTIAL, atomic_folder, remove_partial, verify_checksums
from magicvideo.errors import UserError
from magicvideo.training.distributed import (
    DistributedContext,
    distribute_like,
    gather_full,
    to_dtensor,
    to_local,
)


class EMA:
    """Exponential moving average of a network's trainable parameters.

    The decay at a step is min(decay, (1 + step) / (10 + step)), so that the average forgets the
    initial weights within a few updates. Frozen parameters are not averaged. Each process averages
    its shard of sharded weights.

    Args:
        network: The network, whose trainable parameters are averaged.
        decay: Maximal decay.
        device: Device of the averages; None for that of the weights.
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
        """Update the averages after update number `step` (from 0)."""
        # 0.1 at the first update: 9/10 of the average are then the new weights
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
        """Load saved averages, full tensors or shards."""
        for name, parameter in network.named_parameters():
            if name in self.shadow:
                self.shadow[name].copy_(to_local(distribute_like(averages[name], parameter)))

    def tensors(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the averages by name, sharded like the network's parameters."""
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
    """Load the averages into the main process's network for the duration of the block.

    Args:
        network: The unsharded network, which gets the averages and evaluation mode.
        trained: The trained network: `network` itself, or its sharded copy.
        ema: The averages of `trained`.
        context: The processes, which must all enter the block.
    """
    is_whole = network is trained
    if is_whole and context.is_main:
        ema.swap(network)
    elif not is_whole:
        averages = gather_full(ema.tensors(trained), keep=context.is_main)
        if context.is_main:
            network.load_state_dict(averages, strict=False)  # other parameters are frozen
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


STATE_FILE = "state.json"
_INTEGER = ":int"  # marks an integer in the optimizer state
_ASYNC_BYTES = 256 * 1024**2


@dataclass
class TrainingState:
    """The state of a stage in training.

    It excludes random number generators, because random numbers are a function of the step, and
    frozen weights, which the recipe determines.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    step: int = 0
    extra_emas: Sequence[EMA] = ()

    def averages(self) -> dict[str, EMA]:
        """Return all averages, by the name of their tensors in a checkpoint."""
        return {"ema": self.ema, **{f"ema-{ema.decay:g}": ema for ema in self.extra_emas}}

    def optimizer_state_of(self, parameter: nn.Parameter) -> Mapping[str, Tensor | int]:
        """Return the optimizer state of a parameter, sharded like the parameter."""
        return self.optimizer.state.get(parameter, {})

    def weights(self) -> dict[str, Tensor]:
        """Return the trainable parameters and the buffers, by name."""
        frozen = {name for name, p in self.network.named_parameters() if not p.requires_grad}
        return {n: t for n, t in self.network.state_dict().items() if n not in frozen}

    def is_sharded(self) -> bool:
        """Return whether the weights are sharded."""
        return any(isinstance(p, DTensor) for p in self.network.parameters())


class CheckpointManager:
    """The checkpoints of one stage, `step-00001000` and so on, below one folder.

    Args:
        folder: Folder of the checkpoints; created with the first one.
        keep: Number of checkpoints to keep. The newest valid one is never deleted.
        stage: Name of the stage, which must match that of a checkpoint.
        global_batch: Number of samples per update, over all processes.
        context: The processes; None for a single one.
        async_bytes: Size from which checkpoints are written in the background.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        stage: str,
        *,
        global_batch: int = 1,
        context: DistributedContext | None = None,
        async_bytes: int = _ASYNC_BYTES,
    ) -> None:
        self.folder, self.keep, self.stage = folder, keep, stage
        self.global_batch, self.async_bytes = global_batch, async_bytes
        self.context = context
        self.is_main = context is None or context.is_main
        self.rejected: list[str] = []
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._sharded: tuple[Future[Any], ExitStack] | None = None
        if self.is_main and folder.is_dir():
            remove_partial(folder)

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint, possibly in the background, and delete old ones.

        All processes must call this. A checkpoint can be resumed with another number of processes.

        Returns:
            The folder, which exists after `wait` at the latest.
        """
        self.wait()
        target = self.folder / f"step-{state.step:08d}"
        if state.is_sharded():
            self._save_sharded(state, target)
            return target
        tensors = {
            "network": gather_full(state.weights().items(), keep=self.is_main),
            "optimizer": gather_full(_optimizer_tensors(state), keep=self.is_main),
            **{
                name: gather_full(ema.tensors(state.network), keep=self.is_main)
                for name, ema in state.averages().items()
            },
        }
        if not self.is_main:
            return target
        size = sum(t.nbytes for group in tensors.values() for t in group.values())
        if size < self.async_bytes:
            self._write(target, tensors, state.step)
            return target
        # updates are in place, so the thread writes a copy
        copies = {g: {n: t.clone() for n, t in group.items()} for g, group in tensors.items()}
        self._thread = threading.Thread(
            target=self._write_in_background, args=(target, copies, state.step)
        )
        self._thread.start()
        return target

    def is_written(self) -> bool:
        """Return whether this process has written its part of the last checkpoint."""
        return self._sharded is None or self._sharded[0].done()

    @property
    def is_pending(self) -> bool:
        """Return whether a sharded checkpoint waits for `wait`, which publishes it."""
        return self._sharded is not None

    def wait(self) -> None:
        """Wait until the last checkpoint is written. All processes must call this.

        Raises:
            OSError: If it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._sharded is not None:
            written, publishing = self._sharded
            self._sharded = None
            with publishing:
                written.result()
                self._barrier()
            self._barrier()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _barrier(self) -> None:
        if self.context is not None:
            self.context.barrier()

    def _write_in_background(
        self, target: Path, tensors: dict[str, dict[str, Tensor]], step: int
    ) -> None:
        try:
            self._write(target, tensors, step)
        except BaseException as error:
            self._error = error

    def _write(self, target: Path, tensors: dict[str, dict[str, Tensor]], step: int) -> None:
        with atomic_folder(target) as partial:
            for name, group in tensors.items():
                save_file(group, partial / f"{name}.safetensors")
            self._write_state_file(partial, step)
        self._delete_old(target)

    def _save_sharded(self, state: TrainingState, target: Path) -> None:
        """Start writing a sharded checkpoint; `wait` publishes it."""
        context = self.context
        assert context is not None
        publishing, partial = ExitStack(), None
        if self.is_main:
            publishing.callback(self._delete_old, target)  # last in, first out
            partial = publishing.enter_context(atomic_folder(target))
            self._write_state_file(partial, state.step)
        folder = context.broadcast_path(partial)
        tensors = {
            **{f"network/{name}": tensor for name, tensor in state.weights().items()},
            **{
                f"{group}/{name}": tensor
                for group, ema in state.averages().items()
                for name, tensor in ema.tensors(state.network)
            },
            **{f"optimizer/{name}": tensor for name, tensor in _optimizer_tensors(state)},
        }
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        written = async_save(tensors, storage_writer=writer, process_group=context.checkpoint_group)
        assert isinstance(written, Future)
        self._sharded = written, publishing

    def _write_state_file(self, folder: Path, step: int) -> None:
        about = {
            "stage": self.stage,
            "step": step,
            "global_batch": self.global_batch,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        (folder / STATE_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")

    def _delete_old(self, target: Path) -> None:
        steps = self._steps()
        if target not in steps:  # it could not be written
            return
        own = steps.index(target)
        # checkpoints of later steps are invalid, otherwise the run would have resumed from them
        for old in [*steps[: max(0, own + 1 - self.keep)], *steps[own + 1 :]]:
            # a folder that cannot be deleted only wastes space
            with contextlib.suppress(OSError):
                shutil.rmtree(old.rename(old.with_name(f"{PARTIAL}{old.name}")))

    def latest(self) -> Path | None:
        """Return the newest valid checkpoint, or None without checkpoints.

        Invalid ones are listed in `rejected`, with the reason.

        Raises:
            UserError: If all checkpoints are invalid, so that training does not restart silently.
        """
        self.rejected = []
        for path in reversed(self._steps()):
            reason = _fault(path)
            if reason is None:
                return path
            self.rejected.append(reason)
        if self.rejected:
            raise UserError(
                f"No checkpoint in {self.folder} can be used: {self.rejected[0]} "
                "Remove the folder to train this stage from its start."
            )
        return None

    def restore(self, state: TrainingState, path: Path) -> dict[str, Any]:
        """Load a checkpoint into `state` and return the content of its `state.json`.

        Raises:
            UserError: If it belongs to another stage or its tensors do not match the network.
        """
        about: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if about["stage"] != self.stage:
            raise UserError(f"{path} is of stage {about['stage']} and not of {self.stage}.")
        if (path / "network.safetensors").is_file():
            groups = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
        else:
            groups = _read_shards(state, path)
        missing = {"network", "optimizer", *state.averages()} - set(groups)
        if missing:
            raise UserError(
                f"{path} has no {sorted(missing)[0]}: extra_ema_decays must not change in a run; "
                "set them as they were, or train into another output."
            )
        own = state.weights()
        _check_tensors(groups["network"], own, path / "network.safetensors")
        for name, tensor in groups["network"].items():
            with torch.no_grad():
                own[name].copy_(distribute_like(tensor, own[name]))
        for name, ema in state.averages().items():
            _compare(set(groups[name]), set(ema.shadow), path / f"{name}.safetensors")
            ema.load(state.network, groups[name])
        _load_optimizer(state, groups["optimizer"])
        state.step = int(about["step"])
        return about

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())


def _read_shards(state: TrainingState, path: Path) -> dict[str, dict[str, Tensor]]:
    """Load the tensors of a sharded checkpoint, sharded like those of `state`."""
    reader = HuggingFaceStorageReader(str(path))
    parameters = dict(state.network.named_parameters())
    tensors: dict[str, Tensor] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        group, _, name = key.partition("/")
        owner = parameters.get(name.rpartition("/")[0] if group == "optimizer" else name)
        empty = torch.empty(stored.size, dtype=stored.properties.dtype)
        like = isinstance(owner, DTensor) and owner.shape == empty.shape
        tensors[key] = distribute_like(empty, owner) if like and owner is not None else empty
    with warnings.catch_warnings():  # this warning says that one process reads, which is intended
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_sharded(tensors, storage_reader=reader, no_dist=not distributed.is_initialized())
    groups: dict[str, dict[str, Tensor]] = {"optimizer": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def _fault(folder: Path) -> str | None:
    try:
        verify_checksums(folder)
    except UserError as error:
        return str(error)
    return None


def load_state_dict_strict(
    network: nn.Module, file: Path, leave_out: Callable[[str], bool] | None = None
) -> None:
    """Load weights; names and shapes must match the network exactly.

    Args:
        network: The network.
        file: File of the weights.
        leave_out: Returns whether to ignore a tensor of the file, by its name.

    Raises:
        UserError: If a name is missing or unknown, or a shape differs. The message names the first.
    """
    tensors = load_file(file)
    if leave_out is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not leave_out(name)}
    own = network.state_dict()
    _check_tensors(tensors, own, file)
    network.load_state_dict(tensors)


def _check_tensors(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path) -> None:
    """Check that names and shapes of tensors match the network."""
    _compare(set(tensors), set(own), file)
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{file}: {name} has the shape {list(tensor.shape)} and the network "
                f"{list(own[name].shape)}; the settings of the model must not change in a run."
            )


def _compare(found: set[str], expected: set[str], file: Path) -> None:
    if missing := sorted(expected - found):
        raise UserError(f"{file} lacks {missing[0]} ({len(missing)} tensors are missing).")
    if foreign := sorted(found - expected):
        raise UserError(f"{file} has {foreign[0]}, which the network lacks ({len(foreign)} such).")


def _optimizer_tensors(state: TrainingState) -> Iterator[tuple[str, Tensor]]:
    """Yield the optimizer state of each parameter; integers are converted to tensors."""
    for name, parameter in state.network.named_parameters():
        for key, value in state.optimizer_state_of(parameter).items():
            if isinstance(value, int):
                yield f"{name}/{key}{_INTEGER}", torch.tensor(value)
            elif isinstance(value, Tensor):
                yield f"{name}/{key}", value


def _load_optimizer(state: TrainingState, tensors: dict[str, Tensor]) -> None:
    stored: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        stored.setdefault(name, {})[key] = tensor
    for name, parameter in state.network.named_parameters():
        if name in stored:
            state.optimizer.state[parameter] = dict(
                _kept_for(parameter, key, value) for key, value in stored[name].items()
            )


def _kept_for(parameter: nn.Parameter, key: str, value: Tensor) -> tuple[str, Tensor | int]:
    if key.endswith(_INTEGER):
        return key.removesuffix(_INTEGER), int(value)
    if value.shape != parameter.shape or value.dtype != parameter.dtype:
        return key, value.to(parameter.device)
    # the fused kernel needs moments with the memory layout of the parameter
    moment = torch.empty_like(parameter, memory_format=torch.preserve_format)
    return key, moment.detach().copy_(distribute_like(value, parameter))

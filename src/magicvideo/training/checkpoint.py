"""CheckpointManager: everything needed to go on, in one folder that appears whole or not at all."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magicvideo.atomic_io import PARTIAL, atomic_folder, remove_partial, verify_checksums
from magicvideo.errors import UserError
from magicvideo.training.distributed import DistributedContext, distribute_like, gather_full
from magicvideo.training.ema import EMA
from magicvideo.training.task import Task

_WHOLE = ":int"


@dataclass
class TrainingState:
    """What changes while a stage trains.

    Random numbers are a function of the step, so no state of theirs is kept.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    step: int = 0

    def optimizer_state_of(self, parameter: nn.Parameter) -> Mapping[str, Tensor | int]:
        """Return what the optimizer keeps for a parameter, cut as the parameter is, if it is."""
        return self.optimizer.state.get(parameter, {})


class CheckpointManager:
    """The checkpoints of one stage, `step-00001000` and so on, below one folder.

    Args:
        folder: Where they are; made when the first is saved.
        keep: How many are kept. The newest that passes its check is never deleted.
        stage: Name of the stage, which a checkpoint must agree with.
        global_batch: Samples of one update, over all processes.
        writes: Whether this process writes; others help it to gather what is to be written.
    """

    def __init__(
        self, folder: Path, keep: int, stage: str, *, global_batch: int = 1, writes: bool = True
    ) -> None:
        self.folder, self.keep, self.stage = folder, keep, stage
        self.global_batch, self.writes = global_batch, writes
        self.rejected: list[str] = []
        if writes and folder.is_dir():
            remove_partial(folder)

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint, then delete those that are too old.

        It holds whole tensors, so that any number of processes can go on from it. All processes
        call this together, and return before the file is there.
        """
        target = self.folder / f"step-{state.step:08d}"
        tensors = {
            "network": gather_full(state.network.state_dict().items(), keep=self.writes),
            "ema": gather_full(state.ema.tensors(state.network), keep=self.writes),
            "optimizer": gather_full(_optimizer_tensors(state), keep=self.writes),
        }
        if self.writes:
            self._write(target, tensors, state.step)
        return target

    def _write(self, target: Path, tensors: dict[str, dict[str, Tensor]], step: int) -> None:
        with atomic_folder(target) as partial:
            for name, group in tensors.items():
                save_file(group, partial / f"{name}.safetensors")
            about = {
                "stage": self.stage,
                "step": step,
                "global_batch": self.global_batch,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
            (partial / "state.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        steps = self._steps()
        own = steps.index(target)
        # those of later steps failed their check, or the run would have gone on from them
        for old in [*steps[: max(0, own + 1 - self.keep)], *steps[own + 1 :]]:
            # a folder that cannot be deleted costs room, and training goes on
            with contextlib.suppress(OSError):
                shutil.rmtree(old.rename(old.with_name(f"{PARTIAL}{old.name}")))

    def latest(self) -> Path | None:
        """Return the newest checkpoint that passes its check, or None where there is none at all.

        Those that fail are listed in `rejected`, with the reason.

        Raises:
            UserError: If there are checkpoints and none passes: training must not start afresh
                over them unasked.
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
        """Load a checkpoint into `state` and return what its `state.json` says.

        Raises:
            UserError: If it belongs to another stage or its tensors are not the network's.
        """
        about = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if about["stage"] != self.stage:
            raise UserError(f"{path} is of stage {about['stage']} and not of {self.stage}.")
        load_state_dict_strict(state.network, path / "network.safetensors")
        averages = load_file(path / "ema.safetensors")
        _compare(set(averages), set(state.ema.shadow), path / "ema.safetensors")
        state.ema.load(state.network, averages)
        _load_optimizer(state, load_file(path / "optimizer.safetensors"))
        state.step = int(about["step"])
        return about

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())


def _fault(folder: Path) -> str | None:
    try:
        verify_checksums(folder)
    except UserError as error:
        return str(error)
    return None


def load_state_dict_strict(
    network: nn.Module, file: Path, leave_out: Callable[[str], bool] | None = None
) -> None:
    """Load weights whose names and shapes are exactly the network's.

    Args:
        network: Takes the weights.
        file: Has them.
        leave_out: Tells by name which tensors of the file do not count.

    Raises:
        UserError: If a name is missing or foreign, or a shape differs. It names the first.
    """
    tensors = load_file(file)
    if leave_out is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not leave_out(name)}
    own = network.state_dict()
    _compare(set(tensors), set(own), file)
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{file}: {name} has the shape {list(tensor.shape)} and the network "
                f"{list(own[name].shape)}; the settings of the model must not change in a run."
            )
    network.load_state_dict({name: distribute_like(t, own[name]) for name, t in tensors.items()})


def _compare(found: set[str], expected: set[str], file: Path) -> None:
    if missing := sorted(expected - found):
        raise UserError(f"{file} lacks {missing[0]} ({len(missing)} tensors are missing).")
    if foreign := sorted(found - expected):
        raise UserError(f"{file} has {foreign[0]}, which the network lacks ({len(foreign)} such).")


def _optimizer_tensors(state: TrainingState) -> Iterator[tuple[str, Tensor]]:
    """Yield what the optimizer keeps for each parameter; whole numbers become tensors."""
    for name, parameter in state.network.named_parameters():
        for key, value in state.optimizer_state_of(parameter).items():
            if isinstance(value, int):
                yield f"{name}/{key}{_WHOLE}", torch.tensor(value)
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
    if key.endswith(_WHOLE):
        return key.removesuffix(_WHOLE), int(value)
    if value.shape != parameter.shape or value.dtype != parameter.dtype:
        return key, value.to(parameter.device)
    # the optimizer's fused kernel walks memory, so moments must lie as the parameter does
    moment = torch.empty_like(parameter, memory_format=torch.preserve_format)
    return key, moment.detach().copy_(distribute_like(value, parameter))


@contextmanager
def ema_weights(task: Task, state: TrainingState, processes: DistributedContext) -> Iterator[None]:
    """Let the first process's `task.network` have the averaged weights for a while."""
    network = task.network
    is_whole = network is state.network
    if is_whole and processes.is_main:
        state.ema.swap(network)
    elif not is_whole:
        averages = gather_full(state.ema.tensors(state.network), keep=processes.is_main)
        if processes.is_main:
            network.load_state_dict(averages, strict=False)  # buffers stay
            network.to(processes.accelerator.device)
    network.eval()
    try:
        yield
    finally:
        network.train()
        if is_whole and processes.is_main:
            state.ema.swap(network)
        elif not is_whole:
            network.to("cpu")

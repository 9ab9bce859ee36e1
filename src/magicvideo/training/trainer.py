"""The loop of every stage: step, accumulate, clip, average, log, save. It knows no modality."""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from magicvideo.atomic_io import atomic_file, atomic_folder, verify_checksums
from magicvideo.diffusion.noise import per_sample_generators, seeded_generator
from magicvideo.errors import UserError
from magicvideo.training.checkpoint import CheckpointManager, TrainingState, ema_weights
from magicvideo.training.deepspeed_backend import DeepSpeedBackend, DeepSpeedState
from magicvideo.training.distributed import (
    DistributedContext,
    compile_blocks,
    enable_activation_checkpointing,
)
from magicvideo.training.ema import EMA
from magicvideo.training.metrics_logger import MetricsLogger
from magicvideo.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from magicvideo.training.recipe import StageConfig
from magicvideo.training.signals import SIGNALS, catch_signals, ignore_sigterm
from magicvideo.training.task import AnyBatch, Task
from magicvideo.training.torch_backend import TorchBackend

CHECKPOINTS, OUTPUT = "checkpoints", "output"
STAGE = "stage.json"


class Interrupted(Exception):  # noqa: N818 - it is no error: the run can go on
    """A signal ended the run after its checkpoint was written.

    Args:
        signal_number: The signal; a program ends with 128 plus it.
        checkpoint: Where the run goes on from.
    """

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by signal {signal_number}; {checkpoint} holds the run")
        self.exit_code = 128 + signal_number


@dataclass
class Trainer:
    """One stage at work: how it is trained, and where its run is kept."""

    name: str
    settings: StageConfig
    folder: Path
    seed: int
    say: Callable[[str], None]

    @property
    def output_dir(self) -> Path:
        """Return the folder of the stage's product, which exists when the stage is done."""
        return self.folder / OUTPUT

    def is_done(self) -> bool:
        """Return whether the product is there, whole, and trained for as many steps as are asked.

        Raises:
            UserError: If the product is damaged.
        """
        if not self.output_dir.is_dir():
            return False
        verify_checksums(self.output_dir)
        about = json.loads((self.output_dir / STAGE).read_text(encoding="utf-8"))
        return bool(about["steps"] >= self.settings.steps)

    def train(self, task: Task) -> None:
        """Train to the last step, from the newest checkpoint if there is one, and save the product.

        Raises:
            UserError: If a loss or a gradient is not finite, or no checkpoint can be used.
            Interrupted: If SIGINT or SIGTERM came; a checkpoint is written first.
        """
        processes = DistributedContext.from_env(self.settings.mixed_precision)
        state = self._begin(task, processes)
        checkpoints = self._checkpoints(processes)
        self._resume(state, checkpoints, processes)
        log = MetricsLogger(self.folder, first_step=state.step) if processes.is_main else None
        with log or nullcontext(), catch_signals() as signals:
            try:
                self._run(TrainerState(task, state, processes, checkpoints, signals), log)
            except RuntimeError as error:
                if not processes.is_peer_failure(error):
                    raise
                ignore_sigterm()
                raise UserError(
                    f"{self.name}: another process of this run ended during step {state.step}, so "
                    f"this one ends too; the newest checkpoint below {checkpoints.folder} holds "
                    "the run, and the same command goes on from it."
                ) from error
        self._save_product(task, state, processes)

    def _begin(self, task: Task, processes: DistributedContext) -> TrainingState:
        """Return the state at the first step: where the weights are, and who holds which."""
        settings = self.settings
        if settings.gradient_checkpointing:
            enable_activation_checkpointing(task.network, self.name)
        network = processes.shard_or_move(task.network)
        if settings.compile:
            compile_blocks(network)
        uses_zero = processes.uses_zero(network)
        if settings.optimizer != "adamw" and (uses_zero or network is not task.network):
            raise UserError(
                f"{self.name}.optimizer={settings.optimizer} cannot be shared out; set it to "
                "adamw, or launch without FSDP and DeepSpeed."
            )
        optimizer = build_optimizer(network, settings)
        on_cpu = settings.ema_device == "cpu"
        ema = EMA(network, settings.ema_decay, torch.device("cpu") if on_cpu else None)
        kind = DeepSpeedState if uses_zero else TrainingState
        return kind(network, optimizer, ema)

    def _checkpoints(self, processes: DistributedContext) -> CheckpointManager:
        settings = self.settings
        return CheckpointManager(
            self.folder / CHECKPOINTS,
            settings.keep_checkpoints,
            self.name,
            global_batch=settings.batch_size
            * settings.gradient_accumulation_steps
            * processes.world_size,
            writes=processes.is_main,
        )

    def _run(self, run: "TrainerState", log: MetricsLogger | None) -> None:
        settings, state, processes = self.settings, run.state, run.processes
        updates: TorchBackend | DeepSpeedBackend
        if isinstance(state, DeepSpeedState):
            updates = DeepSpeedBackend(processes, state, settings)
        else:
            updates = TorchBackend(processes, state)
        saved_at = time.monotonic()
        while state.step < settings.steps:
            started = time.monotonic()
            values = self._update(run, updates)
            values = _means(values, processes)
            values["seconds"] = time.monotonic() - started
            if log is not None:
                log.write(state.step, values)
            if state.step % settings.log_every == 0 or state.step == settings.steps:
                self._report(state.step, values, processes.world_size)
            if state.step % settings.preview_every == 0:
                self._preview(run, log)
            due = time.monotonic() - saved_at > 60 * settings.checkpoint_minutes
            is_due, signal_number = _agree(run, due=due)
            if is_due or signal_number or state.step == settings.steps:
                path = run.checkpoints.save(state)
                processes.barrier()
                saved_at = time.monotonic()
                if signal_number:
                    raise Interrupted(signal_number, path)

    def _resume(
        self, state: TrainingState, checkpoints: CheckpointManager, processes: DistributedContext
    ) -> None:
        newest = processes.broadcast_path(checkpoints.latest() if processes.is_main else None)
        for reason in checkpoints.rejected:
            self.say(f"{self.name}: passed over a checkpoint: {reason}")
        if newest is None:
            return
        about = checkpoints.restore(state, newest)
        self.say(f"{self.name}: goes on from step {state.step} of {self.settings.steps}")
        if about["threads"] != torch.get_num_threads():
            self.say(
                f"{self.name}: {torch.get_num_threads()} threads in place of {about['threads']}: "
                "the run goes on, equal to the unbroken one to rounding and not to the last bit"
            )
        before, now = about.get("global_batch"), checkpoints.global_batch
        if before not in (None, now):
            self.say(
                f"{self.name}: {now} samples an update in place of {before}: the run goes on with "
                "other batches than the unbroken one; processes x batch_size x "
                "gradient_accumulation_steps must not change"
            )

    def _update(
        self, run: "TrainerState", updates: TorchBackend | DeepSpeedBackend
    ) -> dict[str, float]:
        """Make one update of the weights and of their averages, and return what to log."""
        settings, task, state, processes = self.settings, run.task, run.state, run.processes
        step = state.step
        torch.manual_seed(seeded_generator(self.seed, self.name, step).initial_seed())
        factor = learning_rate_factor(settings, step)
        set_learning_rate(state.optimizer, factor)
        totals: dict[str, float] = {}
        for micro in range(settings.gradient_accumulation_steps):
            position = (
                step * settings.gradient_accumulation_steps + micro
            ) * processes.world_size + processes.rank
            batch = task.get_batch(position)
            count = settings.batch_size
            generator = per_sample_generators(
                position * count, count, self.seed, self.name, "sample"
            )
            is_last = micro == settings.gradient_accumulation_steps - 1
            with updates.accumulating(is_last=is_last):
                with processes.accelerator.autocast():
                    losses = task.losses(updates.network, batch, generator)
                self._check(losses["loss"].item(), "loss", step, batch)
                updates.backward(losses["loss"] / settings.gradient_accumulation_steps)
            for name, value in losses.items():
                totals[name] = (
                    totals.get(name, 0.0) + value.item() / settings.gradient_accumulation_steps
                )
        size = updates.clip(settings.max_grad_norm)
        scaler = processes.accelerator.scaler
        # of fp16: where gradients overflow it leaves this update out and scales the next ones less
        if scaler is None or scaler.get_scale() <= 1:
            self._check(size, "norm of the gradient", step, batch)
        updates.step()
        state.ema.update(state.network, step)
        state.step += 1
        return {
            **totals,
            "gradient_norm": size,
            "learning_rate": settings.learning_rate * factor,
        }

    def _check(self, value: float, what: str, step: int, batch: AnyBatch) -> None:
        """Stop before the weights are touched by a number that is not finite."""
        if math.isfinite(value):
            return
        clips = ", ".join(batch.clip_ids[:8])
        raise UserError(
            f"{self.name}: the {what} of step {step} is {value} (clips {clips}); no weight "
            "was changed. Lower learning_rate or look at these clips, and run the command again."
        )

    def _report(self, step: int, values: dict[str, float], processes: int) -> None:
        samples = self.settings.batch_size * self.settings.gradient_accumulation_steps * processes
        shown = "  ".join(
            f"{name} {value:.4f}" for name, value in values.items() if name != "learning_rate"
        )
        rate = samples / values["seconds"]
        self.say(f"{self.name} {step}/{self.settings.steps}  {shown}  {rate:.1f} samples/s")

    def _preview(self, run: "TrainerState", log: MetricsLogger | None) -> None:
        with ema_weights(run.task, run.state, run.processes):
            picture = run.task.preview() if log is not None else None
        if log is None or picture is None:
            return
        target = self.folder / "samples" / f"step-{run.state.step:08d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as partial:
            picture.save(partial)
        log.log_image(run.state.step, picture)

    def _save_product(
        self, task: Task, state: TrainingState, processes: DistributedContext
    ) -> None:
        with ema_weights(task, state, processes):
            if processes.is_main:
                with atomic_folder(self.output_dir) as partial:
                    task.save(partial)
                    about = {"stage": self.name, "steps": state.step}
                    (partial / STAGE).write_text(json.dumps(about), encoding="utf-8")
        processes.barrier()
        self.say(f"{self.name}: done, {self.output_dir}")


@dataclass(frozen=True)
class TrainerState:
    """What the loop has in hands while a stage trains."""

    task: Task
    state: TrainingState
    processes: DistributedContext
    checkpoints: CheckpointManager
    signals: list[int]


def _means(values: dict[str, float], processes: DistributedContext) -> dict[str, float]:
    sums = processes.all_reduce_sum(list(values.values()))
    return {name: total / processes.world_size for name, total in zip(values, sums, strict=True)}


def _agree(run: TrainerState, *, due: bool) -> tuple[bool, int | None]:
    """Return whether all processes save now, and by which signal they end.

    A signal may reach one process alone, and the first one's clock says when a checkpoint is due.
    """
    noticed = [float(number in run.signals) for number in SIGNALS]
    is_due, *heard = run.processes.all_reduce_sum([float(due and run.processes.is_main), *noticed])
    raised = [int(number) for number, count in zip(SIGNALS, heard, strict=True) if count > 0]
    return is_due > 0, raised[0] if raised else None

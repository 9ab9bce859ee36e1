"""The training loop of all stages. It is generic: a `Task` provides batches and losses."""

import json
import math
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from magicvideo.atomic_io import atomic_file, atomic_folder, verify_checksums
from magicvideo.diffusion.noise import per_sample_generators, seeded_generator
from magicvideo.errors import UserError
from magicvideo.rng import StackedGenerator
from magicvideo.training.checkpoint import EMA, CheckpointManager, TrainingState, ema_weights
from magicvideo.training.components import OUTPUT, STAGE_FILE
from magicvideo.training.distributed import (
    DistributedContext,
    compile_blocks,
    enable_activation_checkpointing,
    sync_gradients,
)
from magicvideo.training.loader import (
    BatchSource,
    TrainingBatch,
    default_workers,
    load_batches,
)
from magicvideo.training.metrics_logger import MetricsLogger, TrackerName
from magicvideo.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from magicvideo.training.progress import Reporter
from magicvideo.training.recipe import LoaderConfig, Precision, StageConfig
from magicvideo.training.signals import SIGNALS, catch_signals, ignore_sigterm


@runtime_checkable
class Task(Protocol):
    """Interface between the trainer and one stage."""

    @property
    def network(self) -> nn.Module:
        """Return the trained network."""

    @property
    def batches(self) -> BatchSource:
        """Return the training batches."""

    def lr_scale(self, name: str) -> float:
        """Return the factor on the learning rate of a parameter, by its name in `network`."""

    def losses(
        self,
        network: nn.Module,
        batch: Any,  # noqa: ANN401 (each stage has its own kind)
        generator: StackedGenerator,
    ) -> dict[str, Tensor]:
        """Return `loss`, which is minimized, and other values to log.

        It must not synchronize with the device, so that it also runs on the meta device, where a
        dry run counts operations.

        Args:
            network: `self.network`, possibly wrapped by DDP.
            batch: A batch of `batches`, on any device.
            generator: The only source of random numbers, with one stream per sample.
        """

    def preview(self) -> Image.Image | None:
        """Return an image of current results, or None."""

    def save(self, folder: Path) -> None:
        """Write the stage's output, as components of a model folder."""


CHECKPOINTS, SAMPLES = "checkpoints", "samples"
AVERAGES = "averages"
"""Subfolder of a stage's folder with the averages that are not the output."""
_HELDOUT_BATCHES = 16


class Interrupted(Exception):  # noqa: N818 - not an error: the run can be resumed
    """A signal stopped the run after a checkpoint was written.

    Args:
        signal_number: The signal; the exit code is 128 plus this number.
        checkpoint: Checkpoint to resume from.
    """

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by signal {signal_number}; the checkpoint is {checkpoint}")
        self.exit_code = 128 + signal_number


@dataclass
class Trainer:
    """Trains one stage.

    Attributes:
        name: The stage.
        config: Its settings.
        folder: Folder of its log, samples, checkpoints and output.
        seed: Seed of all random numbers.
        reporter: Receives logged metrics and messages.
        precision: Precision of the forward pass: `config.mixed_precision` with `auto` resolved.
        loader: Settings of the worker processes.
        tracker: Additional logger besides `log.jsonl`.
        about: Information about the stage to store in its output.
        heldout: Batches of held-out clips, used to select the best of several averages; None with a
            single average.
    """

    name: str
    config: StageConfig
    folder: Path
    seed: int
    reporter: Reporter
    precision: Precision = "no"
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    tracker: TrackerName = "none"
    about: dict[str, Any] = field(default_factory=dict)
    heldout: BatchSource | None = None

    @property
    def output_dir(self) -> Path:
        """Return the folder of the stage's output, which exists when the stage is finished."""
        return self.folder / OUTPUT

    def is_done(self) -> bool:
        """Return whether the output exists and was trained for the requested number of steps.

        Raises:
            UserError: If the output is damaged.
        """
        if not self.output_dir.is_dir():
            return False
        verify_checksums(self.output_dir)
        about = json.loads((self.output_dir / STAGE_FILE).read_text(encoding="utf-8"))
        return bool(about["steps"] >= self.config.steps)

    def train(self, task: Task) -> None:
        """Train to the last step, resuming from the latest checkpoint, and save the output.

        Every random number is a function of seed, stage and step, so a resumed run gives the same
        result as an uninterrupted one.

        Raises:
            UserError: If a loss or gradient is not finite, or no checkpoint is usable.
            Interrupted: After SIGINT or SIGTERM; a checkpoint is written first.
        """
        config = self.config
        context = DistributedContext.from_env(self.precision)
        state = self._build_state(task, context)
        checkpoints = self._resume(state, context)
        network, optimizer = state.network, state.optimizer
        model = context.wrap(network)
        optimizer_step = context.accelerator.prepare_optimizer(optimizer, device_placement=False)
        batches = self._load_batches(task, state.step, context)
        logger = (
            MetricsLogger(self.folder, state.step, self.tracker, config.model_dump(mode="json"))
            if context.is_main
            else None
        )
        window = _Window(config.log_every)
        saved_at = time.monotonic()
        with (
            logger or nullcontext(),
            catch_signals() as signals,
            self._name_lost_process(state, checkpoints, context),
        ):
            while state.step < config.steps:
                step = state.step
                torch.manual_seed(seeded_generator(self.seed, self.name, step).initial_seed())
                factor = learning_rate_factor(config, step)
                set_learning_rate(optimizer, factor)

                # Update: gradients, clipping, optimizer step, EMA. On a CPU, finite values are
                # checked before the step. On an accelerator they are checked before anything is
                # saved, because a check at every step would synchronize with the device.
                metrics = self._backward(task, model, batches, step, window, context)
                context.accelerator.unscale_gradients(optimizer_step)
                norm = nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
                norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
                metrics["gradient_norm"] = _precise(norm)
                if context.device.type == "cpu":
                    self._check_finite(step, metrics, window.clip_ids[-1], context)
                optimizer_step.step()
                optimizer_step.zero_grad(set_to_none=True)
                for average in state.averages().values():
                    average.update(network, step)
                state.step += 1
                window.add(step + 1, metrics, config.learning_rate * factor)

                # Log: the only synchronization with the device
                is_last = state.step == config.steps
                is_preview = state.step % config.preview_every == 0
                is_logged = state.step % config.log_every == 0 or is_preview or is_last
                if is_logged or context.device.type == "cpu":
                    self._log(window, context, logger)
                if is_preview:
                    self._preview(task, state, context, logger)

                # Checkpoint: `_log` has checked that all saved values are finite
                is_late = time.monotonic() - saved_at > 60 * config.checkpoint_minutes
                is_due, stopped_by = _agree(signals, checkpoints, context, is_late=is_late)
                if is_due or is_last or stopped_by is not None:
                    self._log(window, context, logger)
                    path = checkpoints.save(state)
                    saved_at = time.monotonic()
                if stopped_by is not None:
                    checkpoints.wait()
                    raise Interrupted(stopped_by, path)
            checkpoints.wait()
        self._save_output(task, state, context)

    def _build_state(self, task: Task, context: DistributedContext) -> TrainingState:
        """Build network, optimizer and EMA at step 0, sharded over processes if requested."""
        config = self.config
        if config.gradient_checkpointing:
            enable_activation_checkpointing(task.network, self.name)
        network = context.shard_or_move(task.network)
        if config.compile:
            compile_blocks(network)
        if config.optimizer != "adamw" and network is not task.network:
            raise UserError(
                f"{self.name}.optimizer={config.optimizer} cannot be sharded; set it to adamw, or "
                "launch without FSDP."
            )
        optimizer = build_optimizer(network, config, task.lr_scale)
        on_cpu = torch.device("cpu") if config.ema_device == "cpu" else None
        ema, *extra_emas = (
            EMA(network, decay, on_cpu) for decay in (config.ema_decay, *config.extra_ema_decays)
        )
        return TrainingState(network, optimizer, ema, extra_emas=extra_emas)

    def _load_batches(
        self, task: Task, step: int, context: DistributedContext
    ) -> Iterator[TrainingBatch]:
        """Load the batches of this process, starting with update `step`."""
        micro_batches, world_size = self.config.gradient_accumulation_steps, context.world_size
        first, end = (
            one * micro_batches * world_size + context.rank for one in (step, self.config.steps)
        )
        workers = self.loader.num_workers
        return load_batches(
            task.batches,
            range(first, end, world_size),
            context.device,
            num_workers=default_workers(context.device, world_size) if workers is None else workers,
            prefetch_factor=self.loader.prefetch_factor,
        )

    def _backward(
        self,
        task: Task,
        model: nn.Module,
        batches: Iterator[TrainingBatch],
        step: int,
        window: "_Window",
        context: DistributedContext,
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of the micro-batches of an update; return mean losses."""
        micro_batches, world_size = self.config.gradient_accumulation_steps, context.world_size
        batch_size = self.config.batch_size
        position = step * micro_batches * world_size + context.rank
        means: dict[str, Tensor] = {}
        for micro in range(micro_batches):
            batch = next(batches)
            window.clip_ids.append(batch.clip_ids)
            sample = (position + micro * world_size) * batch_size
            # one random stream per sample, by its position in the whole run: results do not depend
            # on the number of processes
            generator = per_sample_generators(sample, batch_size, self.seed, self.name, "sample")
            with sync_gradients(model, enabled=micro == micro_batches - 1):
                with context.accelerator.autocast():
                    losses = task.losses(model, batch, generator)
                # the accumulated gradient is that of the mean loss over micro-batches
                context.accelerator.backward(losses["loss"] / micro_batches)
            for name, value in losses.items():
                part = _precise(value) / micro_batches
                means[name] = means[name] + part if name in means else part
        return means

    @contextmanager
    def _name_lost_process(
        self, state: TrainingState, checkpoints: CheckpointManager, context: DistributedContext
    ) -> Iterator[None]:
        """Report the failure of another process in one sentence."""
        try:
            yield
        except RuntimeError as error:
            if not context.is_peer_failure(error):
                raise
            ignore_sigterm()
            raise UserError(
                f"{self.name}: another process of this run failed during step {state.step}, so "
                "this one stops too; the same command resumes from the latest checkpoint in "
                f"{checkpoints.folder}."
            ) from error

    def _resume(self, state: TrainingState, context: DistributedContext) -> CheckpointManager:
        """Load the latest checkpoint, if any, and report differences from its run."""
        config, say = self.config, self.reporter.say
        checkpoints = CheckpointManager(
            self.folder / CHECKPOINTS,
            config.keep_checkpoints,
            self.name,
            global_batch=config.batch_size
            * config.gradient_accumulation_steps
            * context.world_size,
            context=context,
        )
        latest = context.broadcast_path(checkpoints.latest() if context.is_main else None)
        for reason in checkpoints.rejected:
            say(f"{self.name}: skipped a checkpoint: {reason}")
        if latest is None:
            return checkpoints
        about = checkpoints.restore(state, latest)
        say(f"{self.name}: resumes from step {state.step} of {config.steps}")
        if about["threads"] != torch.get_num_threads():
            say(
                f"{self.name}: {torch.get_num_threads()} threads instead of {about['threads']}: "
                "the result equals that of an uninterrupted run only up to rounding"
            )
        before, now = about.get("global_batch"), checkpoints.global_batch
        if before not in (None, now):
            say(
                f"{self.name}: {now} samples per update instead of {before}: batches differ from "
                "those of an uninterrupted run; processes x batch_size x "
                "gradient_accumulation_steps must not change"
            )
        return checkpoints

    def _log(
        self, window: "_Window", context: DistributedContext, logger: MetricsLogger | None
    ) -> None:
        """Move the metrics since the last call to the host, check and log them."""
        if not window.steps:
            return
        rows = window.flush(context)
        samples = self.config.batch_size * self.config.gradient_accumulation_steps
        for step, values in rows:
            self._check_finite(step - 1, values, window.recent_clips(), context)
            if logger is not None:
                logger.write(step, values)
        window.clip_ids.clear()
        step, values = rows[-1]
        rate = samples * context.world_size / max(values["seconds"], 1e-9)
        shown = {**values, "samples_per_second": rate}
        if logger is not None:
            self.reporter.report(self.name, step, self.config.steps, shown)

    def _check_finite(
        self,
        step: int,
        values: "dict[str, Tensor] | dict[str, float]",
        clip_ids: list[str],
        context: DistributedContext,
    ) -> None:
        """Raise an error if a loss or gradient is not finite, before anything is saved."""
        scaler = context.accelerator.scaler
        for name, what in (("loss", "loss"), ("gradient_norm", "norm of the gradient")):
            value = float(values[name])
            # with fp16, the gradient scaler skips updates whose gradients overflow
            is_scaled = name == "gradient_norm" and scaler is not None and scaler.get_scale() > 1
            if not math.isfinite(value) and not is_scaled:
                raise UserError(
                    f"{self.name}: the {what} of step {step} is {value} (clips "
                    f"{', '.join(clip_ids[:8])}); the step was discarded. Reduce learning_rate or "
                    "check these clips, and run the command again."
                )

    def _preview(
        self,
        task: Task,
        state: TrainingState,
        context: DistributedContext,
        logger: MetricsLogger | None,
    ) -> None:
        """Write a sheet of samples of the EMA weights."""
        with ema_weights(task.network, state.network, state.ema, context):
            image = task.preview() if logger is not None else None
        if logger is None or image is None:
            return
        target = self.folder / SAMPLES / f"step-{state.step:08d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as partial:
            image.save(partial)
        logger.log_image(state.step, image)
        self.reporter.say(f"{self.name}: samples of step {state.step} in {target}")

    def _save_output(self, task: Task, state: TrainingState, context: DistributedContext) -> None:
        """Write the components with the EMA weights.

        Of several averages, the one with the lowest held-out loss is the output, and the others are
        written to subfolders of `averages`.
        """
        about = {"stage": self.name, "steps": state.step, **self.about}
        best = state.ema
        if state.extra_emas:
            losses = {}
            for ema in state.averages().values():
                with ema_weights(task.network, state.network, ema, context):
                    losses[ema] = self._heldout_loss(task, context) if context.is_main else 0.0
            best = min(losses, key=lambda ema: losses[ema])  # the others only join collectives
            table = {f"{ema.decay:g}": loss for ema, loss in losses.items()}
            about["averages"] = {"kept": best.decay, "heldout_loss": table}
            shown = ", ".join(f"{loss:.4f} of decay {decay}" for decay, loss in table.items())
            self.reporter.say(f"{self.name}: held-out loss of the averages: {shown}")
        for ema in state.averages().values():
            folder = self.output_dir if ema is best else self.folder / AVERAGES / f"{ema.decay:g}"
            with ema_weights(task.network, state.network, ema, context):
                if context.is_main:
                    with atomic_folder(folder) as partial:
                        task.save(partial)
                        (partial / STAGE_FILE).write_text(json.dumps(about), encoding="utf-8")
        context.barrier()
        self.reporter.say(f"{self.name}: done, {self.output_dir}")

    @torch.no_grad()
    def _heldout_loss(self, task: Task, context: DistributedContext) -> float:
        """Return the mean loss over a few held-out batches, the same for every average."""
        assert self.heldout is not None
        network, size = task.network, self.config.batch_size
        total = 0.0
        for position in range(_HELDOUT_BATCHES):
            batch = self.heldout.get_batch(position).to(context.device)
            generator = per_sample_generators(
                position * size, size, self.seed, self.name, "held out"
            )
            with context.accelerator.autocast():
                total += float(task.losses(network, batch, generator)["loss"])
        return total / _HELDOUT_BATCHES


def _agree(
    signals: Collection[int],
    checkpoints: CheckpointManager,
    context: DistributedContext,
    *,
    is_late: bool,
) -> tuple[bool, int | None]:
    """Agree between processes whether a checkpoint is due, and whether a signal stops the run.

    A signal may reach only one process, and only the main process checks the time. A checkpoint
    written by all processes is published here.
    """
    noticed = [float(number in signals) for number in SIGNALS]
    is_due, written, *heard = context.all_reduce_sum(
        [float(is_late and context.is_main), float(checkpoints.is_written()), *noticed]
    )
    if checkpoints.is_pending and written == context.world_size:
        checkpoints.wait()
    stopped_by = (int(n) for n, count in zip(SIGNALS, heard, strict=True) if count)
    return bool(is_due), next(stopped_by, None)


def _precise(value: Tensor) -> Tensor:
    """Convert a metric to float64, or to float32 on Apple's GPUs, which lack it."""
    return value.detach().float() if value.device.type == "mps" else value.detach().double()


class _Window:
    """Metrics of the updates since the last log, on their device.

    Args:
        length: Number of updates whose clip ids are kept.
    """

    def __init__(self, length: int) -> None:
        self.steps: list[tuple[int, dict[str, Tensor], float]] = []
        self.clip_ids: deque[list[str]] = deque(maxlen=length)
        self._started = time.monotonic()

    def add(self, step: int, values: dict[str, Tensor], learning_rate: float) -> None:
        """Add the metrics of an update."""
        self.steps.append((step, values, learning_rate))

    def recent_clips(self) -> list[str]:
        """Return the clip ids of these updates."""
        return [clip_id for ids in self.clip_ids for clip_id in ids]

    def flush(self, context: DistributedContext) -> list[tuple[int, dict[str, float]]]:
        """Return the metrics, averaged over processes, with the mean seconds per update."""
        names = list(self.steps[0][1])
        table = torch.stack(
            [values[name] for _, values, _ in self.steps for name in names]
        ).tolist()
        sums = context.all_reduce_sum(table)
        seconds = (time.monotonic() - self._started) / len(self.steps)
        rows = []
        for row, (step, _, learning_rate) in enumerate(self.steps):
            means = [total / context.world_size for total in sums[row * len(names) :][: len(names)]]
            values = dict(zip(names, means, strict=True))
            rows.append((step, {**values, "learning_rate": learning_rate, "seconds": seconds}))
        self.steps.clear()
        self._started = time.monotonic()
        return rows

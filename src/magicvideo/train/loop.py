"""The loop of every stage: step, accumulate, clip, average, log, save. It knows no modality."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from torch import nn

from magicvideo.diffusion.noise import generator_for
from magicvideo.errors import UserError
from magicvideo.storage import atomic_file, atomic_folder, verify_sums
from magicvideo.train.checkpoint import Checkpoints, TrainingState
from magicvideo.train.ema import Ema
from magicvideo.train.log import Log
from magicvideo.train.optim import learning_rate_factor, make_optimizer, set_learning_rate
from magicvideo.train.settings import StageSettings
from magicvideo.train.task import AnyBatch, Task

CHECKPOINTS, PRODUCT = "checkpoints", "product"
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
class Stage:
    """One stage at work: how it is trained, and where its run is kept."""

    name: str
    settings: StageSettings
    folder: Path
    seed: int
    say: Callable[[str], None]
    _signals: list[int] = field(default_factory=list)

    @property
    def product(self) -> Path:
        """Return the folder of the stage's product, which exists when the stage is done."""
        return self.folder / PRODUCT

    def is_done(self) -> bool:
        """Return whether the product is there, whole, and trained for as many steps as are asked.

        Raises:
            UserError: If the product is damaged.
        """
        if not self.product.is_dir():
            return False
        verify_sums(self.product)
        about = json.loads((self.product / STAGE).read_text(encoding="utf-8"))
        return bool(about["steps"] >= self.settings.steps)

    def train(self, task: Task) -> None:
        """Train to the last step, from the newest checkpoint if there is one, and save the product.

        Raises:
            UserError: If a loss or a gradient is not finite, or no checkpoint can be used.
            Interrupted: If SIGINT or SIGTERM came; a checkpoint is written first.
        """
        settings = self.settings
        accelerator = Accelerator(mixed_precision=settings.mixed_precision)
        network = task.network.to(accelerator.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(network, settings)
        state = TrainingState(network, optimizer, Ema(network, settings.ema_decay))
        checkpoints = Checkpoints(self.folder / CHECKPOINTS, settings.keep_checkpoints, self.name)
        self._resume(state, checkpoints)
        wrapped, prepared = accelerator.prepare(network, optimizer)
        saved_at = time.monotonic()
        with Log(self.folder, first_step=state.step) as log, self._listening():
            while state.step < settings.steps:
                started = time.monotonic()
                values = self._update(task, accelerator, wrapped, prepared, state)
                values["seconds"] = time.monotonic() - started
                log.write(state.step, values)
                if state.step % settings.log_every == 0 or state.step == settings.steps:
                    self._report(state.step, values)
                if state.step % settings.preview_every == 0:
                    self._preview(task, state, log)
                due = time.monotonic() - saved_at > 60 * settings.checkpoint_minutes
                if due or self._signals or state.step == settings.steps:
                    path = checkpoints.save(state)
                    saved_at = time.monotonic()
                    if self._signals:
                        raise Interrupted(self._signals[0], path)
        self._save_product(task, state)

    def _resume(self, state: TrainingState, checkpoints: Checkpoints) -> None:
        newest = checkpoints.newest()
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

    def _update(
        self,
        task: Task,
        accelerator: Accelerator,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
    ) -> dict[str, float]:
        """Make one update of the weights and of their averages, and return what to log."""
        settings, step = self.settings, state.step
        torch.manual_seed(generator_for(self.seed, self.name, step).initial_seed())
        task.begin_step(step)
        factor = learning_rate_factor(settings, step)
        set_learning_rate(optimizer, factor)
        totals: dict[str, float] = {}
        for micro in range(settings.accumulate):
            position = (step * settings.accumulate + micro) * accelerator.num_processes
            position += accelerator.process_index
            batch = task.read(position)
            generator = generator_for(self.seed, self.name, "batch", position)
            is_last = micro == settings.accumulate - 1
            with _synchronised(accelerator, network, when=is_last):
                with accelerator.autocast():
                    losses = task.losses(network, batch, generator)
                self._check(losses["loss"].item(), "loss", step, batch)
                accelerator.backward(losses["loss"] / settings.accumulate)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item() / settings.accumulate
        norm = accelerator.clip_grad_norm_(network.parameters(), settings.clip_norm)
        self._check(float(norm), "norm of the gradient", step, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.network, step)
        state.step += 1
        return {
            **totals,
            "gradient_norm": float(norm),
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

    def _report(self, step: int, values: dict[str, float]) -> None:
        samples = self.settings.batch_size * self.settings.accumulate
        shown = "  ".join(
            f"{name} {value:.4f}" for name, value in values.items() if name != "learning_rate"
        )
        rate = samples / values["seconds"]
        self.say(f"{self.name} {step}/{self.settings.steps}  {shown}  {rate:.1f} samples/s")

    def _preview(self, task: Task, state: TrainingState, log: Log) -> None:
        with _averaged(state):
            picture = task.preview()
        if picture is None:
            return
        target = self.folder / "samples" / f"step-{state.step:08d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as partial:
            picture.save(partial)
        log.picture(state.step, picture)

    def _save_product(self, task: Task, state: TrainingState) -> None:
        with _averaged(state), atomic_folder(self.product) as partial:
            task.save(partial)
            about = {"stage": self.name, "steps": state.step}
            (partial / STAGE).write_text(json.dumps(about), encoding="utf-8")
        self.say(f"{self.name}: done, {self.product}")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM, to end after the current step; a second SIGINT ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            if len(self._signals) > 1:
                signal.default_int_handler(number, frame)

        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _averaged(state: TrainingState) -> Iterator[None]:
    """Let the network have its averaged weights for a while."""
    state.ema.swap(state.network)
    state.network.eval()
    try:
        yield
    finally:
        state.network.train()
        state.ema.swap(state.network)


@contextmanager
def _synchronised(accelerator: Accelerator, network: nn.Module, *, when: bool) -> Iterator[None]:
    """Let processes exchange gradients with the last of the accumulated batches alone."""
    if when:
        yield
    else:
        with accelerator.no_sync(network):
            yield

"""Runs of the tiny key-frame stage, in one process or, as a script, in two."""

import json
import os
import shutil
import sys
from pathlib import Path

from tiny_recipe import task_of

from magicvideo.training.loader import BatchSource
from magicvideo.training.progress import SilentReporter
from magicvideo.training.recipe import Recipe
from magicvideo.training.trainer import Interrupted, Trainer

STEPS, STOPPED_AT, PREVIEWED_AT = 12, 6, 9
GLOBAL_BATCH = 4
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def run(
    output: Path, *, batch_size: int, gradient_accumulation_steps: int = 1, terminated: bool = False
) -> int:
    """Train to the end and return 0, or the exit code of a run that a signal ended.

    `terminated` sends this process SIGTERM in the middle of the step that ends at `STOPPED_AT`.
    """
    values = json.loads((output / "recipe.json").read_text())
    values["keyframes"] |= {
        "steps": STEPS,
        "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "preview_every": PREVIEWED_AT,
    }
    recipe = Recipe.model_validate({**values, "output": output})
    task = task_of(recipe, "keyframes")
    if terminated:
        task.batches = TerminatingBatches(task.batches, gradient_accumulation_steps)
    stage = Trainer(
        "keyframes", recipe.keyframes, output / "keyframes", recipe.seed, SilentReporter()
    )
    try:
        stage.train(task)
    except Interrupted as stopped:
        return stopped.exit_code
    return 0


class TerminatingBatches(BatchSource):
    """Batches that send this process SIGTERM before those of one step."""

    def __init__(self, batches, gradient_accumulation_steps):
        self.batches, self.before = batches, (STOPPED_AT - 1) * gradient_accumulation_steps
        self.size, self.batch_size = batches.size, batches.batch_size
        self.num_frames, self.num_read = batches.num_frames, 0

    def get_other_batch(self, *order):
        return self.batches.get_other_batch(*order)

    def preview_captions(self, count):
        return self.batches.preview_captions(count)

    def __getitem__(self, position):
        if self.num_read == self.before:
            os.kill(os.getpid(), 15)
        self.num_read += 1
        return self.batches[position]


def main(folder: Path) -> None:
    """Run the parts of `test_distributed.py` in each of two processes."""
    rank = int(os.environ["RANK"])
    assert run(folder / "ddp", batch_size=2) == 0
    assert run(folder / "onward", batch_size=2) == 0
    os.environ.update(FSDP2)
    # the second process alone gets the signal
    assert (
        run(folder / "fsdp2", batch_size=1, gradient_accumulation_steps=2, terminated=rank == 1)
        == 143
    )
    if rank == 0:
        shutil.copytree(folder / "fsdp2" / "keyframes", folder / "back" / "keyframes")
    assert run(folder / "fsdp2", batch_size=1, gradient_accumulation_steps=2) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))

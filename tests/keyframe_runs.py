"""Runs of the tiny recipe's key-frame stage, by one process or, as a script, by two at once."""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from magicvideo.training.recipe import Recipe
from magicvideo.training.stages import build_task
from magicvideo.training.trainer import Interrupted, Trainer

STEPS, STOPPED_AT, PREVIEWED_AT = 20, 10, 15
GLOBAL_BATCH = 4
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "false"}
STAGE_OF_ZERO = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
HAS_DEEPSPEED = find_spec("deepspeed") is not None


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
    task = build_task(recipe, "keyframes")
    if terminated:
        task.get_batch = read_and_terminate(task.get_batch, gradient_accumulation_steps)
    stage = Trainer(
        "keyframes", recipe.keyframes, output / "keyframes", recipe.seed, lambda _: None
    )
    try:
        stage.train(task)
    except Interrupted as stopped:
        return stopped.exit_code
    return 0


def read_and_terminate(read, gradient_accumulation_steps):
    """Return a function that reads batches, and before those of one step sends SIGTERM."""
    positions = []

    def read_batch(position):
        if len(positions) == (STOPPED_AT - 1) * gradient_accumulation_steps:
            os.kill(os.getpid(), 15)
        positions.append(position)
        return read(position)

    return read_batch


def main(folder: Path) -> None:
    """Do in each of two processes what `test_processes.py` looks at."""
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
    if HAS_DEEPSPEED:
        with_deepspeed(folder, rank)


def with_deepspeed(folder: Path, rank: int) -> None:
    """Do the same under ZeRO: stage 2 from the start, and stage 1 from one process's checkpoint."""
    os.environ.update(ZERO, **{STAGE_OF_ZERO: "2"})
    assert (
        run(folder / "zero2", batch_size=1, gradient_accumulation_steps=2, terminated=rank == 1)
        == 143
    )
    if rank == 0:
        shutil.copytree(folder / "zero2" / "keyframes", folder / "zero-back" / "keyframes")
    assert run(folder / "zero2", batch_size=1, gradient_accumulation_steps=2) == 0
    os.environ[STAGE_OF_ZERO] = "1"
    assert run(folder / "zero1", batch_size=1, gradient_accumulation_steps=2) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))

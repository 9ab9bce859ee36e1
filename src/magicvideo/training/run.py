"""Flow 2's middle: a recipe's stages in order, each from the products of those before it."""

import difflib
import json
import time
from collections.abc import Callable

import torch

from magicvideo.atomic_io import atomic_file, remove_partial
from magicvideo.errors import UserError
from magicvideo.training.distributed import init_distributed
from magicvideo.training.recipe import Recipe, StageName
from magicvideo.training.stages import build_task
from magicvideo.training.trainer import Interrupted, Trainer

SETTINGS = "recipe.json"
_EMULATED = 5.0  # times; where there are instructions, bfloat16 is no slower than float32


def train(recipe: Recipe, only: StageName | None, log: Callable[[str], None]) -> None:
    """Train a recipe's stages in order, or one of them. A stage that is done is not done again.

    Args:
        recipe: What to train. Its resolved settings are written beside the run.
        only: The one stage to train; None trains all.
        log: Called with lines for the console.

    Raises:
        UserError: If a stage before it has no product yet, its data cannot be read, or the launch
            asks for what is not supported.
        Interrupted: If a signal ended the run; its last line says how to go on.
    """
    launch = init_distributed()
    if launch.is_main_process:
        recipe.output.mkdir(parents=True, exist_ok=True)
        remove_partial(recipe.output)
    else:
        log = _nothing
    launch.wait_for_everyone()
    for name, settings in recipe.stages().items():
        if only not in (None, name):
            continue
        stage = Trainer(name, settings, recipe.output / name, recipe.seed, log)
        if stage.is_done():
            log(f"{name}: already done, {stage.output_dir}")
            continue
        if launch.is_main_process:
            with atomic_file(recipe.output / SETTINGS) as partial:
                partial.write_text(json.dumps(recipe.model_dump(mode="json"), indent=1))
        on_cpu = launch.device.type == "cpu"
        if on_cpu and settings.mixed_precision == "bf16" and bf16_slowdown() > _EMULATED:
            log(
                f"{name}: this CPU has no instructions for bfloat16 and takes many times as long; "
                f"--set {name}.mixed_precision=no goes on faster"
            )
        try:
            stage.train(build_task(recipe, name))
        except Interrupted as stopped:
            log(f"{stopped}; run the same command to go on.")
            raise


def bf16_slowdown() -> float:
    """Return how many times as long as in float32 this CPU takes for a product in bfloat16."""
    single, half = (_seconds_of_a_product(dtype) for dtype in (torch.float32, torch.bfloat16))
    return half / single


def _seconds_of_a_product(dtype: torch.dtype) -> float:
    """Return the least time of several, for other work may come between."""
    matrix = torch.ones(256, 256, dtype=dtype)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _nothing(line: str) -> None:
    """Stand in for the console on all processes but the first."""


def resolve_stage(recipe: Recipe, name: str | None) -> StageName | None:
    """Return a stage's name, if the recipe has it, or None for all stages.

    Raises:
        UserError: If it does not; the nearest stage is named.
    """
    stages = recipe.stages()
    if name is None:
        return None
    for known in stages:
        if known == name:
            return known
    near = difflib.get_close_matches(name, stages, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(stages)}."
    raise UserError(f"The recipe {recipe.name} has no stage {name!r}; {hint}")

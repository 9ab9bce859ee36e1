"""`magicvideo train`: clips to checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.training.dry_run import StageEstimate
    from magicvideo.training.recipe import HardwareConfig, Recipe


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train")(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/emoji.yaml.")],
    stage: Annotated[
        str | None, typer.Option(help="Train this stage alone; the same command goes on with it.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting: keyframes.learning_rate=1e-4."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; a run repeats exactly with equal ones.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings, sizes and cost; train nothing.")
    ] = False,
) -> None:
    """Train the stages of a recipe, in order. The same command resumes a run that was stopped.

    Examples:
      magicvideo train recipes/emoji.yaml
      magicvideo train recipes/emoji.yaml --stage keyframes --set keyframes.learning_rate=1e-4
      magicvideo train recipes/emoji.yaml --dry-run
    """
    import torch
    from rich.console import Console

    from magicvideo.training.recipe import read_recipe
    from magicvideo.training.run import resolve_stage, train
    from magicvideo.training.trainer import Interrupted

    if threads is not None:
        torch.set_num_threads(threads)
    settings = read_recipe(recipe, changes or [])
    console = Console(soft_wrap=True, highlight=False)
    only = resolve_stage(settings, stage)
    if dry_run:
        _show_plan(settings, console)
        return
    try:
        train(settings, only, console.print)
    except Interrupted as stopped:
        raise typer.Exit(stopped.exit_code) from None


def _show_plan(recipe: "Recipe", console: "Console") -> None:
    from rich.table import Table

    from magicvideo.training.dry_run import ASSUMPTIONS, estimate_run

    console.print_json(recipe.model_dump_json())
    stages = estimate_run(recipe)
    sizes = Table(
        "stage",
        *("reused", "new", "trained", "updates", "samples", "GFLOPs forward", "GFLOPs training"),
        title="parameters in millions; samples of one process; GFLOPs a sample",
    )
    memory = Table(
        "stage",
        *("weights", "gradients", "optimiser", "averages", "activations", "all"),
        title="GB of memory on one GPU",
    )
    for row in stages:
        parameters = (f"{number / 1e6:.2f}" for number in (row.reused, row.new, row.trained))
        counts = (f"{number:,}" for number in (row.updates, row.samples))
        operations = (f"{number:,.3f}" for number in (row.gflops, row.training_gflops))
        sizes.add_row(row.name, *parameters, *counts, *operations)
        parts = (*vars(row.memory).values(), row.memory.total)
        memory.add_row(row.name, *(f"{size / 1e9:.2f}" for size in parts))
    console.print(sizes)
    console.print(memory)
    for assumption in ASSUMPTIONS:
        console.print(f"- {assumption}")
    if recipe.hardware is not None:
        _show_time(recipe, recipe.hardware, stages, console)


def _show_time(
    recipe: "Recipe", machine: "HardwareConfig", stages: "list[StageEstimate]", console: "Console"
) -> None:
    from rich.table import Table

    from magicvideo.training.dry_run import clip_bytes

    time = Table("stage", "hours", "GPU-hours", "samples of all GPUs", title="time")
    for row in stages:
        hours = row.hours(machine)
        samples = f"{row.samples * machine.gpus:,}"
        time.add_row(row.name, f"{hours:,.1f}", f"{hours * machine.gpus:,.0f}", samples)
    console.print(time)
    total = sum(row.hours(machine) for row in stages)
    console.print(
        f"- {total:,.0f} hours in all, on {machine.gpus} GPUs of {machine.tflops:g} TFLOPS. That "
        f"training reaches {machine.utilisation:.0%} of them is an assumption of the recipe. "
        "Reading data, previews and checkpoints take no time here. More GPUs see more samples, in "
        "the same number of updates."
    )
    if machine.clips is not None:
        latents, pixels = (size * machine.clips / 1e9 for size in clip_bytes(recipe))
        console.print(
            f"- {machine.clips:,} clips of {recipe.unet.num_frames} frames are {pixels:,.0f} GB as "
            f"pixels, which `data prepare` keeps, and {latents:,.0f} GB as latents in half "
            "precision, which `data encode` keeps beside embeddings and tokens."
        )

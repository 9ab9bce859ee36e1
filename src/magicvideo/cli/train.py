"""`magicvideo train`: trains the stages of a recipe."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magicvideo.cli.console import say
from magicvideo.imports import pause_garbage_collection

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.training.dry_run import StageEstimate
    from magicvideo.training.recipe import HardwareConfig, Recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A packaged recipe, such as emoji, or a YAML file."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Train only this stage; the same command resumes it.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting: keyframes.learning_rate=1e-4."),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(min=1e-6, max=1e6, help="Factor on the number of updates of all stages."),
    ] = 1.0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads; results are reproducible for equal numbers."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print sizes, cost and time per update without training."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print JSON instead of tables.")
    ] = False,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Print the JSON schema of recipes, for editors."),
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print the reference of all settings in Markdown.")
    ] = False,
) -> None:
    """Train the stages of a recipe in order. The same command resumes a stopped run.

    Examples:
      magicvideo train emoji
      magicvideo train small --set data=runs/data/mine
      magicvideo train emoji --stage keyframes --set keyframes.learning_rate=1e-4
      magicvideo train my_recipe.yaml --scale 0.1 --dry-run
    """
    if schema or reference:
        from magicvideo.training.recipe import recipe_reference, recipe_schema

        say(json.dumps(recipe_schema(), indent=2) if schema else recipe_reference().rstrip("\n"))
        return
    if recipe is None:
        from magicvideo.training.recipe import packaged_recipes

        raise typer.BadParameter(
            f"name a recipe: one of {', '.join(packaged_recipes())}, or a YAML file."
        )
    from magicvideo.training.recipe import read_recipe

    settings = read_recipe(recipe, changes or [], scale)
    if dry_run:
        _dry_run(settings, stage, threads, as_json=as_json)
    else:
        _train(settings, stage, threads)


def _train(recipe: "Recipe", stage: str | None, threads: int | None) -> None:
    from rich.console import Console

    with pause_garbage_collection():
        import torch

        from magicvideo.training.run import resolve_stage, train
        from magicvideo.training.trainer import Interrupted
    from magicvideo.training.progress import LineReporter, Reporter, RichReporter, silence_libraries

    only = resolve_stage(recipe, stage)
    if threads is not None:
        torch.set_num_threads(threads)
    silence_libraries()
    console = Console()
    reporter: Reporter = RichReporter(console) if console.is_terminal else LineReporter(_write_line)
    try:
        train(recipe, only, reporter)
    except Interrupted as stopped:
        raise typer.Exit(stopped.exit_code) from None


def _write_line(line: str) -> None:
    say(line)


def _dry_run(recipe: "Recipe", stage: str | None, threads: int | None, *, as_json: bool) -> None:
    from rich.console import Console

    with pause_garbage_collection():
        import torch

        from magicvideo.training.dry_run import estimate_stage, time_update
        from magicvideo.training.resolve import plan_stages
        from magicvideo.training.run import resolve_stage
    from magicvideo.training.progress import silence_libraries

    if threads is not None:
        torch.set_num_threads(threads)
    silence_libraries()
    plans = plan_stages(recipe, resolve_stage(recipe, stage))
    rows = [estimate_stage(plan, recipe.hardware) for plan in plans]
    seconds = [time_update(plan) for plan in plans]
    if as_json:
        say(json.dumps(_as_json(recipe, rows, seconds), indent=1))
        return
    _show_tables(recipe, rows, seconds, Console(soft_wrap=True, highlight=False))


def _as_json(
    recipe: "Recipe", rows: "list[StageEstimate]", seconds: list[float | None]
) -> dict[str, Any]:
    stages = [
        {
            **asdict(row),
            "passes": row.passes,
            "seconds_per_update": duration,
            "hours": None if recipe.hardware is None else row.hours(recipe.hardware),
        }
        for row, duration in zip(rows, seconds, strict=True)
    ]
    return {"recipe": recipe.model_dump(mode="json"), "stages": stages}


def _show_tables(
    recipe: "Recipe",
    rows: "list[StageEstimate]",
    seconds: list[float | None],
    console: "Console",
) -> None:
    from rich.table import Table

    from magicvideo.training.dry_run import ASSUMPTIONS
    from magicvideo.training.progress import duration

    work = Table(
        "stage",
        *("clips", "updates", "samples", "passes", "s per update", "time"),
        title=f"{recipe.name}: samples of one process; times measured on this machine",
    )
    sizes = Table(
        "stage",
        *("pretrained", "new", "trained", "GFLOPs forward", "GFLOPs training"),
        title="parameters in millions; GFLOPs per sample",
    )
    memory = Table(
        "stage",
        *("weights", "gradients", "optimizer", "EMA", "activations", "all"),
        title="GB of memory on one GPU",
    )
    for row, time in zip(rows, seconds, strict=True):
        work.add_row(
            row.name,
            "-" if row.clips is None else f"{row.clips:,}",
            f"{row.updates:,}",
            f"{row.samples:,}",
            "-" if row.passes is None else f"{row.passes:,.3g}",
            "-" if time is None else f"{time:.3g}",
            "-" if time is None else duration(time * row.updates),
        )
        parameters = (f"{number / 1e6:.2f}" for number in (row.pretrained, row.new, row.trained))
        sizes.add_row(row.name, *parameters, f"{row.gflops:,.3f}", f"{row.training_gflops:,.3f}")
        parts = (*asdict(row.memory).values(), row.memory.total)
        memory.add_row(row.name, *(f"{size / 1e9:.2f}" for size in parts))
    for table in (work, sizes, memory):
        console.print(table)
    measured = [
        time * row.updates for row, time in zip(rows, seconds, strict=True) if time is not None
    ]
    if len(measured) > 1:
        console.print(
            f"- {duration(sum(measured))} in all for the {len(measured)} stages that were timed: "
            "forward and backward passes of a few updates, without data loading, optimizer, "
            "previews and checkpoints."
        )
    for assumption in ASSUMPTIONS:
        console.print(f"- {assumption}")
    if recipe.hardware is not None:
        _show_hours(recipe, recipe.hardware, rows, console)


def _show_hours(
    recipe: "Recipe", hardware: "HardwareConfig", rows: "list[StageEstimate]", console: "Console"
) -> None:
    from rich.table import Table

    from magicvideo.training.dry_run import clip_bytes

    table = Table("stage", "hours", "GPU-hours", "samples of all GPUs", title="time on `hardware`")
    for row in rows:
        hours = row.hours(hardware)
        samples = f"{row.samples * hardware.gpus:,}"
        table.add_row(row.name, f"{hours:,.1f}", f"{hours * hardware.gpus:,.0f}", samples)
    console.print(table)
    total = sum(row.hours(hardware) for row in rows)
    console.print(
        f"- {total:,.0f} hours in all, on {hardware.gpus} GPUs of {hardware.tflops:g} TFLOPS. A "
        f"utilization of {hardware.utilisation:.0%} is an assumption of the recipe. Data loading, "
        "previews and checkpoints are not included. More GPUs process more samples in the same "
        "number of updates."
    )
    if hardware.clips is not None:
        latents, pixels = (size * hardware.clips / 1e9 for size in clip_bytes(recipe))
        console.print(
            f"- {hardware.clips:,} clips of {recipe.unet.num_frames} frames are {pixels:,.0f} GB "
            f"as pixels, which `data prepare` writes, and {latents:,.0f} GB as latents in half "
            "precision, which `data encode` writes with embeddings and tokens."
        )

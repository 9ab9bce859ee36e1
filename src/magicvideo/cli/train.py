"""`magicvideo train`: clips to checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.train.recipe import Recipe


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

    from magicvideo.train.loop import Interrupted
    from magicvideo.train.recipe import read_recipe
    from magicvideo.train.run import check_stage, train

    if threads is not None:
        torch.set_num_threads(threads)
    settings = read_recipe(recipe, changes or [])
    console = Console(soft_wrap=True, highlight=False)
    only = check_stage(settings, stage)
    if dry_run:
        _show_plan(settings, console)
        return
    try:
        train(settings, only, console.print)
    except Interrupted as stopped:
        console.print(f"{stopped}; run the same command to go on.")
        raise typer.Exit(stopped.exit_code) from None


def _show_plan(recipe: "Recipe", console: "Console") -> None:
    from rich.table import Table

    from magicvideo.train.plan import plan

    console.print_json(recipe.model_dump_json())
    table = Table("stage", "parameters", "updates", "samples", "GFLOPs a sample, forward")
    for row in plan(recipe):
        table.add_row(
            row.name,
            f"{row.parameters / 1e6:.2f} M",
            f"{row.updates:,}",
            f"{row.samples:,}",
            f"{row.gflops:.3f}",
        )
    console.print(table)

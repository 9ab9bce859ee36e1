"""`magicvideo info`: shows the components of a model."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("info")(info)


def info(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Model folder.", show_default="the included model"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="The model folder, as for other commands.", show_default=False),
    ] = None,
) -> None:
    """Verify a model folder, and show its components, sizes, hash, version and licence.

    Examples:
      magicvideo info
      magicvideo info runs/emoji/model
      magicvideo info --model runs/emoji/model
    """
    if folder is not None and model is not None:
        raise UserError("The model folder was given twice; omit --model.")
    from importlib.metadata import version

    from rich.console import Console
    from rich.table import Table

    from magicvideo.pipelines.model_folder import find_model_folder, summarize

    summary = summarize(find_model_folder(folder or model))
    table = Table("component", "class", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("bytes", justify="right")
    for part in summary.components:
        table.add_row(part.name, part.class_name, f"{part.parameters:,}", f"{part.size:,}")
    table.add_section()
    parameters = sum(part.parameters for part in summary.components)
    size = sum(part.size for part in summary.components)
    table.add_row("all", "", f"{parameters:,}", f"{size:,}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"\nfolder      {summary.folder}", markup=False)
    console.print(f"hash        {summary.hash}")
    continues = (
        f"up to {summary.max_given_frames} given frames" if summary.max_given_frames else "no"
    )
    console.print(f"continues   {continues}")
    console.print(f"motion      {'a condition' if summary.has_motion else 'no condition'}")
    if summary.training:
        steps = ", ".join(f"{stage} {count:,}" for stage, count in summary.training.items())
        console.print(f"steps       {steps}", markup=False)
    console.print(f"licence     {summary.license or 'not stated in the folder'}", markup=False)
    console.print(f"magicvideo  {version('magicvideo')}")

"""`magicvideo export`: a run becomes a model folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export")(export)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run, such as runs/emoji.")],
    output: Annotated[Path, typer.Argument(help="Model folder to make.")],
    precision: Annotated[
        Literal["fp16", "fp32"], typer.Option(help="Precision of the stored weights.")
    ] = "fp16",
) -> None:
    """Put the products of a training run together as one model folder.

    Example:
      magicvideo export runs/emoji models/emoji
      magicvideo generate "a cat face, blue background" --model models/emoji
    """
    from magicvideo.train.export import export as export_run

    export_run(run, output, precision)
    typer.echo(f"{output} holds the model; use it with --model {output}.")

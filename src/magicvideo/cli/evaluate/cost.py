"""`magicvideo evaluate cost`: what the paper's network costs beside others, counted."""

from pathlib import Path
from typing import Annotated

import typer


def cost(
    output: Annotated[Path, typer.Option(help="The Markdown page, replaced.")] = Path(
        "docs/cost.md"
    ),
) -> None:
    """Count parameters and operations of the denoiser at the paper's size, and of its peers.

    It needs no data and no weights, and takes a minute or two.

    Example:
      magicvideo evaluate cost
    """
    from magicvideo.errors import UserError
    from magicvideo.evaluate.cost.page import cost_page
    from magicvideo.storage import atomic_file

    if not output.parent.is_dir():
        raise UserError(f"The folder {output.parent} for --output does not exist; make it first.")
    page = cost_page()
    with atomic_file(output) as partial:
        partial.write_text(page, encoding="utf-8")
    typer.echo(f"{output}")

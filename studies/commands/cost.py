"""`python -m studies cost`: the counted cost of the paper's network and of other networks."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import say


def cost(
    output: Annotated[Path, typer.Option(help="The Markdown page, which is replaced.")] = Path(
        "docs/cost.md"
    ),
) -> None:
    """Count parameters and FLOPs of the denoiser at the paper's size and of other networks.

    This needs neither data nor weights, and takes one or two minutes.

    Example:
      python -m studies cost
    """
    from magicvideo.atomic_io import atomic_file
    from magicvideo.errors import UserError
    from studies.cost.page import cost_page

    if not output.parent.is_dir():
        raise UserError(f"The folder {output.parent} for --output does not exist; create it first.")
    page = cost_page()
    with atomic_file(output) as partial:
        partial.write_text(page, encoding="utf-8")
    say(f"{output}")

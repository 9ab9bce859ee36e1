"""`magicvideo evaluate report`: one page about a run, with curves, samples and results."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import check_target, require


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of results.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(help="A JSON file of `evaluate PROTOCOL`; may be given several times."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The HTML page, replaced; by default report.html in the run's folder."),
    ] = None,
    sheets: Annotated[
        int, typer.Option(min=0, help="Sample sheets shown of each stage, from first to last.")
    ] = 4,
) -> None:
    """Write one HTML page about a run, which opens without a network: curves, samples, results.

    Results and sheets that lie in the run's folder are taken, too. Results that differ in steps or
    guidance alone are plotted as a line.

    Examples:
      magicvideo evaluate report runs/emoji
      magicvideo evaluate report runs/evaluate
      magicvideo evaluate report runs/emoji --results results.json --output emoji.html
    """
    require(("jinja2", "matplotlib"), "report", "A report")
    from magicvideo.atomic_io import atomic_file
    from magicvideo.evaluation.run_report.page import as_html
    from magicvideo.evaluation.run_report.run import read_run

    page = output or run / "report.html"
    found = read_run(run, results or [])
    check_target(page)
    with atomic_file(page) as partial:
        partial.write_text(as_html(found, sheets), encoding="utf-8")
    say(page)

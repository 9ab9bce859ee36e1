"""`magicvideo evaluate own`: scores of a model on your own clips, however few."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import (
    JudgeFolder,
    Model,
    check_target,
    check_writable_folder,
    command_line,
    load,
    prepare_section,
    progress,
    require_scipy,
)

if TYPE_CHECKING:
    from magicvideo.evaluation.evaluator import EvaluationResult

_FOLDER = "evaluation"
_DOCUMENT = "own.json"


def own(
    data: Annotated[Path, typer.Option(help="Folder of prepared clips.")],
    model: Model = None,
    judge: JudgeFolder = None,
    prompts: Annotated[
        int, typer.Option(min=2, help="At most so many captions of each split.")
    ] = 50,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for videos and own.json; by default `evaluation` beside the model folder, "
            "or here for the model that is shipped."
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="A Markdown page that gets a section of the results, too.")
    ] = None,
) -> None:
    """Score a model on your own clips: captions, motion, flicker, colours, and the autoencoder.

    Counts follow from the data. A score that they are too few for is left out, with the reason.

    Examples:
      magicvideo evaluate own --data data/mine --model runs/mine/model
      magicvideo evaluate own --data data/mine --model runs/mine/model --prompts 20
    """
    require_scipy()
    if page is not None:
        check_target(page)
        prepare_section(page, "own")
    folder = output or (model.absolute().parent if model else Path.cwd()) / _FOLDER
    check_writable_folder(folder)
    from magicvideo.atomic_io import atomic_file
    from magicvideo.evaluation.evaluator import Evaluator, evaluate
    from magicvideo.evaluation.judge.network import SHIPPED, load_judge
    from magicvideo.evaluation.own import NAME, own_protocol
    from magicvideo.evaluation.report import as_json, as_markdown
    from magicvideo.evaluation.results_page import write_section

    judge_folder = judge or SHIPPED
    matcher = load_judge(judge_folder)
    pipeline = load(model)
    protocol, missing = own_protocol(data, pipeline, matcher, prompts=prompts)
    evaluator = Evaluator(
        protocol=protocol, pipeline=pipeline, judge=matcher, data=data, work=folder
    )
    with progress() as report:
        result = evaluate(evaluator, judge_folder, report)
    with atomic_file(folder / _DOCUMENT) as partial:
        partial.write_text(as_json(result), encoding="utf-8")
    _print(result)
    for reason in missing:
        say(reason, err=True)
    if page is not None:
        options = {"data": data, "model": model, "judge": judge, "prompts": prompts}
        write_section(page, NAME, as_markdown(result, command_line([NAME], options)))
        say(page)
    say(folder / _DOCUMENT)


def _print(result: "EvaluationResult") -> None:
    """Print a table of each set: the score, its interval, and that of the real clips."""
    from rich.console import Console
    from rich.table import Table

    from magicvideo.evaluation.report import score_cells

    console = Console()
    for found in result.sets:
        table = Table("measure", "n", "measured [95 %]", "real clips", "chance", title=found.name)
        for score in found.scores:
            table.add_row(*score_cells(score, result.protocol))
        console.print(table)

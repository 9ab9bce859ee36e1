"""`magicvideo evaluate PROTOCOL`: generated videos, scored by a protocol."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.evaluate.options import (
    DEFAULT_PAGE,
    DEFAULT_WORK,
    JudgeFolder,
    Model,
    Page,
    Work,
    command_line,
)
from magicvideo.cli.evaluate.preparing import check_target, load, prepare_section, progress


def run(
    protocol: Annotated[str, typer.Argument(help="emoji-heldout, or a YAML file.")],
    data: Annotated[Path, typer.Option(help="Folder of prepared clips.")],
    model: Model = None,
    judge: JudgeFolder = None,
    output: Page = DEFAULT_PAGE,
    json: Annotated[
        Path | None, typer.Option("--json", help="All numbers and the whole protocol, replaced.")
    ] = None,
    work: Work = DEFAULT_WORK,
) -> None:
    """Generate what a protocol asks for, score it, and write the results.

    Example:
      magicvideo evaluate emoji-heldout --data data/emoji64 --json results.json
    """
    for target in filter(None, (output, json)):
        check_target(target)
    from magicvideo.evaluate.protocol import read_protocol

    settings = read_protocol(protocol)
    prepare_section(output, settings.name)
    from magicvideo.evaluate.judge.files import SHIPPED, load_judge
    from magicvideo.evaluate.page import write_section
    from magicvideo.evaluate.report import as_json, as_markdown
    from magicvideo.evaluate.run import Evaluation, evaluate
    from magicvideo.storage import atomic_file

    judge_folder = judge or SHIPPED
    evaluation = Evaluation(
        protocol=settings,
        pipeline=load(model),
        judge=load_judge(judge_folder),
        data=data,
        work=work,
    )
    with progress() as report:
        result = evaluate(evaluation, judge_folder, report)
    typed = Path(protocol) if Path(protocol).is_file() else protocol
    command = command_line([typed], {"data": data, "model": model, "judge": judge})
    write_section(output, settings.name, as_markdown(result, command))
    typer.echo(output)
    if json:
        with atomic_file(json) as partial:
            partial.write_text(as_json(result), encoding="utf-8")
        typer.echo(json)

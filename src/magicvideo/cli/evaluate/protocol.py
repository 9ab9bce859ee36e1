"""`magicvideo evaluate PROTOCOL`: generated videos, scored by a protocol."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.evaluate.benchmark import BenchmarkOptions, score_benchmark
from magicvideo.cli.evaluate.options import (
    DEFAULT_PAGE,
    DEFAULT_WORK,
    AllowFewer,
    ClipFolder,
    Generated,
    I3dFile,
    InceptionFile,
    JudgeFolder,
    Model,
    Page,
    Reference,
    Samples,
    Work,
    command_line,
)
from magicvideo.cli.evaluate.preparing import check_target, load, prepare_section, progress
from magicvideo.errors import UserError

if TYPE_CHECKING:
    from magicvideo.evaluate.protocol import Protocol


def run(
    protocol: Annotated[str, typer.Argument(help="A protocol's name, or a YAML file.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of prepared emoji, for emoji-heldout.")
    ] = None,
    model: Model = None,
    judge: JudgeFolder = None,
    output: Page = DEFAULT_PAGE,
    json: Annotated[
        Path | None, typer.Option("--json", help="All numbers and the whole protocol, replaced.")
    ] = None,
    work: Work = DEFAULT_WORK,
    reference: Reference = None,
    generated: Generated = None,
    i3d: I3dFile = None,
    inception: InceptionFile = None,
    clip: ClipFolder = None,
    samples: Samples = None,
    allow_fewer: AllowFewer = False,
) -> None:
    """Generate what a protocol asks for, score it, and write the results.

    Examples:
      magicvideo evaluate emoji-heldout --data data/emoji64 --json results.json
      magicvideo evaluate msrvtt-2990 --reference data/msr-vtt --i3d i3d_torchscript.pt
    """
    for target in filter(None, (output, json)):
        check_target(target)
    from magicvideo.evaluate.benchmark.protocol import Benchmark
    from magicvideo.evaluate.protocol import read_any_protocol

    settings = read_any_protocol(protocol)
    prepare_section(output, settings.name)
    typed = Path(protocol) if Path(protocol).is_file() else protocol
    options = BenchmarkOptions(
        reference=reference,
        generated=generated,
        i3d=i3d,
        inception=inception,
        clip=clip,
        samples=samples,
        allow_fewer=allow_fewer,
        model=model,
        judge=judge,
    )
    if isinstance(settings, Benchmark):
        if data is not None:
            raise UserError(f"{settings.name} reads its real clips from --reference, not --data.")
        written = score_benchmark(settings, typed, options, work)
    else:
        if named := options.foreign():
            raise UserError(f"--{named} is for benchmarks; {settings.name} has no use for it.")
        if data is None:
            raise UserError(f"{settings.name} needs --data, a folder of prepared clips.")
        written = _score_sets(settings, typed, data, model, judge, work)
    if written is not None:
        _write(settings.name, written, output, json)


def _write(name: str, written: tuple[str, str], output: Path, json: Path | None) -> None:
    """Write the section, and the JSON where it is wanted."""
    from magicvideo.evaluate.page import write_section
    from magicvideo.storage import atomic_file

    page, document = written
    write_section(output, name, page)
    typer.echo(output)
    if json:
        with atomic_file(json) as partial:
            partial.write_text(document, encoding="utf-8")
        typer.echo(json)


def _score_sets(
    settings: "Protocol",
    typed: str | Path,
    data: Path,
    model: Path | None,
    judge: Path | None,
    work: Path,
) -> tuple[str, str]:
    """Return the section and the JSON of a protocol with sets of prompts."""
    from magicvideo.evaluate.judge.files import SHIPPED, load_judge
    from magicvideo.evaluate.report import as_json, as_markdown
    from magicvideo.evaluate.run import Evaluation, evaluate

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
    command = command_line([typed], {"data": data, "model": model, "judge": judge})
    return as_markdown(result, command), as_json(result)

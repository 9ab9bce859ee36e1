"""`magicvideo evaluate PROTOCOL`: generated videos, scored by a protocol."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.evaluate.benchmark import BenchmarkOptions, score_benchmark
from magicvideo.cli.evaluate.job import EvaluationJob
from magicvideo.cli.evaluate.options import (
    DEFAULT_PAGE,
    DEFAULT_WORK,
    JudgeFolder,
    Model,
    Page,
    SweptGuidance,
    SweptSteps,
    Work,
    command_line,
)
from magicvideo.cli.evaluate.prompt_sets import run_prompt_sets
from magicvideo.cli.evaluate.setup import check_target, prepare_section
from magicvideo.cli.option_groups import with_option_groups
from magicvideo.errors import UserError

if TYPE_CHECKING:
    from magicvideo.evaluation.sweep import SweepPoint


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """What is scored, by whom and against what."""

    reference: Annotated[
        Path | None,
        typer.Option(help="Folder of the real clips; prepared emoji, for emoji-heldout."),
    ] = None
    data: Annotated[Path | None, typer.Option(help="Another name of --reference.")] = None
    model: Model = None
    judge: JudgeFolder = None

    def real_clips(self, protocol: str) -> Path:
        """Return the folder of the real clips.

        Raises:
            UserError: If it has no name or two.
        """
        if self.reference is not None and self.data is not None:
            raise UserError("--data and --reference name the same folder; leave one of them out.")
        folder = self.reference or self.data
        if folder is None:
            raise UserError(
                f"{protocol} needs --reference (or --data, which is the same), the folder of the "
                "real clips."
            )
        return folder


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What takes the place of a protocol's own values."""

    steps: SweptSteps = None
    guidance: SweptGuidance = None


@with_option_groups
def run(
    protocol: Annotated[str, typer.Argument(help="A protocol's name, or a YAML file.")],
    *,
    subject: EvaluationInputs,
    output: Page = DEFAULT_PAGE,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="All numbers and the whole protocol, replaced; by default PROTOCOL.json in the "
            "folder of --work. In a sweep, names end with the values.",
        ),
    ] = None,
    work: Work = DEFAULT_WORK,
    sweep: Sweep,
    benchmark: BenchmarkOptions,
) -> None:
    """Generate what a protocol asks for, score it, and write the results.

    Examples:
      magicvideo evaluate emoji-heldout --data data/emoji64
      magicvideo evaluate emoji-heldout --data data/emoji64 --steps 5 --steps 10 --guidance 4
      magicvideo evaluate msrvtt-2990 --reference data/msr-vtt --i3d i3d_torchscript.pt
    """
    check_target(output)
    from magicvideo.evaluation.benchmark.protocol import Benchmark
    from magicvideo.evaluation.protocol import read_any_protocol
    from magicvideo.evaluation.share import process_share
    from magicvideo.evaluation.sweep import section_name, sweep_points

    found = read_any_protocol(protocol)
    if not isinstance(found, Benchmark) and (named := benchmark.unsupported()):
        raise UserError(f"--{named} is for benchmarks; {found.name} has no use for it.")
    settings = sweep_points(sweep.steps or [], sweep.guidance or [])
    section = section_name(found.name, settings)
    prepare_section(output, section)
    typed = Path(protocol) if Path(protocol).is_file() else protocol
    options = {**vars(subject), **vars(sweep), **benchmark.to_cli()}
    task = EvaluationJob(
        reference=subject.real_clips(found.name),
        model=subject.model,
        judge=subject.judge,
        work=work,
        settings=settings,
        share=process_share(),
        command=command_line([typed], options),
        page=output,
        section=section,
        documents=_documents(json, work, found.name, settings),
    )
    if isinstance(found, Benchmark):
        score_benchmark(found, task, benchmark)
    else:
        run_prompt_sets(found, task)


def _documents(
    json: Path | None, work: Path, name: str, settings: list["SweepPoint"]
) -> list[Path]:
    """Return the JSON file of each setting.

    Raises:
        UserError: If the file that a user names cannot be written.
    """
    if json is not None:
        check_target(json)
        if len(settings) == 1:
            return [json]
    return [setting.document(json or work / f"{name}.json") for setting in settings]

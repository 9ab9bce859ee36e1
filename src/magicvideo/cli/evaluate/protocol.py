"""`magicvideo evaluate PROTOCOL`: generate videos and score them by a protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import (
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
    Report,
    Samples,
    SweptGuidance,
    SweptSteps,
    Work,
    check_target,
    check_writable_folder,
    command_line,
    load,
    prepare_section,
    process_device,
    progress,
)
from magicvideo.cli.options import with_option_groups
from magicvideo.errors import UserError

if TYPE_CHECKING:
    import torch

    from magicvideo.cli.evaluate.setup import Report
    from magicvideo.data.workers import Rank
    from magicvideo.evaluation.benchmark.features import FeatureNetworks
    from magicvideo.evaluation.benchmark.protocol import Benchmark
    from magicvideo.evaluation.benchmark.run import BenchmarkResult, BenchmarkRun
    from magicvideo.evaluation.evaluator import Evaluator
    from magicvideo.evaluation.protocol import Protocol, SweepPoint
    from magicvideo.pipelines.request import Request
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline


Written: TypeAlias = tuple[str, Sequence[str]]
"""The section of the page, and a JSON document for each setting."""


@dataclass(kw_only=True)
class EvaluationJob:
    """One command.

    Attributes:
        reference: Folder of the real clips.
        model: Folder of the model; None for the one that is shipped.
        judge: Folder of the judge; None for the one that is shipped.
        work: Where generated videos are kept.
        settings: What takes the place of the protocol's own steps and guidance.
        rank: Of this process.
        command: As a user would type it again.
        page: Of results.
        section: Name of the section.
        documents: The JSON file of each setting.
    """

    reference: Path
    model: Path | None
    judge: Path | None
    work: Path
    settings: list["SweepPoint"]
    rank: "Rank"
    command: str
    page: Path
    section: str
    documents: list[Path]
    _begun: int | None = field(init=False)

    def __post_init__(self) -> None:
        """Note what was there when the command began."""
        self._begun = _stamp(self.documents[-1])

    @property
    def is_sweep(self) -> bool:
        """Tell whether anything takes the place of the protocol's own values."""
        return any(setting.name for setting in self.settings)

    def folder(self, setting: "SweepPoint") -> Path:
        """Return where the videos of a setting are kept: those of two are never mixed."""
        return self.work / setting.name

    def generate_share(
        self,
        pipeline: "MagicVideoPipeline",
        requests: Sequence[list["Request"]],
        report: Report,
    ) -> bool:
        """Make this process's share of the videos, and tell whether those of all are there then.

        Args:
            pipeline: The model.
            requests: Of each setting.
            report: Called with progress.

        Raises:
            UserError: If a folder cannot be made, or a video.
        """
        from magicvideo.evaluation.video_cache import generate_shard

        there = 0
        for setting, wanted in zip(self.settings, requests, strict=True):
            what = " ".join(filter(None, ("videos", setting.name)))
            folder = self.folder(setting)
            check_writable_folder(folder)

            def on_video(done: int, total: int, what: str = what) -> None:
                report(what, done, total)

            there += generate_shard(pipeline, wanted, folder, self.rank, on_video)
        total = sum(map(len, requests))
        if there < total:
            say(
                f"{there} of {total} videos are made; the process that makes the last one scores "
                "them, and the same command continues after a stop.",
                err=True,
            )
        return there == total

    def score_locked(self, score: Callable[[], Written]) -> None:
        """Score and write, one process at a time, unless another of several has done so.

        Args:
            score: Called for what is to be written.

        Raises:
            UserError: If the work folder cannot be made.
        """
        from filelock import FileLock

        from magicvideo.atomic_io import atomic_file
        from magicvideo.evaluation.results_page import write_section

        check_writable_folder(self.work)
        with FileLock(self.work / f"{self.section.replace(' ', '-')}.lock"):
            if self.rank.world_size > 1 and _stamp(self.documents[-1]) != self._begun:
                say("Another process has scored the videos meanwhile.", err=True)
                return
            section, texts = score()
            write_section(self.page, self.section, section)
            # the last document is written last: other processes take it as the end of the work
            for path, text in zip(self.documents, texts, strict=True):
                with atomic_file(path) as partial:
                    partial.write_text(text, encoding="utf-8")
        for path in (self.page, *self.documents):
            say(path)


def _stamp(path: Path) -> int | None:
    """Return what changes when a file is replaced; None where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


def run_prompt_sets(protocol: "Protocol", task: EvaluationJob) -> None:
    """Make this process's share of the videos of all sets; the process that makes the last scores.

    Raises:
        UserError: If the model or the data cannot give what the protocol asks for.
    """
    from magicvideo.evaluation.evaluator import Evaluator
    from magicvideo.evaluation.judge.network import SHIPPED, load_judge

    judge_folder = task.judge or SHIPPED
    pipeline, judge = load(task.model), load_judge(judge_folder)
    evaluations = [
        Evaluator(
            protocol=setting.of(protocol),
            pipeline=pipeline,
            judge=judge,
            data=task.reference,
            work=task.folder(setting),
        )
        for setting in task.settings
    ]
    requests = [evaluation.requests() for evaluation in evaluations]
    with progress() as report:
        if task.generate_share(pipeline, requests, report):
            task.score_locked(lambda: _score(evaluations, judge_folder, task, report))


def _score(
    evaluations: list["Evaluator"], judge_folder: Path, task: EvaluationJob, report: "Report"
) -> Written:
    from magicvideo.evaluation.evaluator import evaluate
    from magicvideo.evaluation.report import as_json, as_markdown, sweep_as_markdown

    results = [evaluate(evaluation, judge_folder, report) for evaluation in evaluations]
    if task.is_sweep:
        page = sweep_as_markdown(results, task.section, task.command)
    else:
        page = as_markdown(results[0], task.command)
    return page, [as_json(result) for result in results]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What benchmarks alone have a use for."""

    generated: Generated = None
    i3d: I3dFile = None
    inception: InceptionFile = None
    clip: ClipFolder = None
    samples: Samples = None
    allow_fewer: AllowFewer = False

    def unsupported(self) -> str | None:
        """Return the first option given, for protocols that have no use for any."""
        given = (name.replace("_", "-") for name, value in vars(self).items() if value)
        return next(given, None)

    def to_cli(self) -> dict[str, object]:
        """Return the options for the command line that a user would type again."""
        files = {"i3d": self.i3d, "inception": self.inception, "clip": self.clip}
        paths = {
            name: value if value is None or value.startswith("hub:") else Path(value)
            for name, value in files.items()
        }
        rest = {"samples": self.samples, "allow_fewer": self.allow_fewer}
        return {"generated": self.generated, **paths, **rest}


def score_benchmark(benchmark: "Benchmark", task: EvaluationJob, options: BenchmarkOptions) -> None:
    """Make this process's share of the videos; the process that makes the last scores all.

    Raises:
        UserError: If an option or the data cannot give what the benchmark asks for.
    """
    _check(task, options)
    from magicvideo.evaluation.benchmark.run import BenchmarkRun

    device = process_device()
    networks = _networks(task.judge, options, device)
    runs = [
        BenchmarkRun(
            benchmark=setting.of(benchmark),
            networks=networks,
            reference=task.reference,
            work=task.folder(setting),
            samples=options.samples,
            allow_fewer=options.allow_fewer,
        )
        for setting in task.settings
    ]
    if options.generated is not None:
        _score_folder(runs[0], options.generated, task, device)
    else:
        _score_model(runs, task, device)


def _check(task: EvaluationJob, options: BenchmarkOptions) -> None:
    if options.generated is not None and task.model is not None:
        raise UserError("--generated takes the place of a model; leave --model or it out.")
    if options.generated is not None and task.is_sweep:
        raise UserError(
            "--generated names videos that are made already; leave --steps and --guidance out."
        )
    if options.samples is not None and not options.allow_fewer:
        raise UserError("--samples gives fewer than the protocol asks; add --allow-fewer to it.")


def _score_folder(
    run: "BenchmarkRun", folder: Path, task: EvaluationJob, device: "torch.device"
) -> None:
    with progress() as report:
        task.score_locked(
            lambda: _written([run.score_folder(folder, report)], run.networks, task, None, device)
        )


def _score_model(runs: list["BenchmarkRun"], task: EvaluationJob, device: "torch.device") -> None:
    runs[0].check()
    pipeline = load(task.model)
    requests = [run.requests(pipeline) for run in runs]
    name = task.model.resolve().name if task.model else "the shipped model"
    with progress() as report:

        def score() -> Written:
            real = runs[0].extract_real_features(report)
            results = [
                run.score_model(pipeline, wanted, name, real, report)
                for run, wanted in zip(runs, requests, strict=True)
            ]
            return _written(results, runs[0].networks, task, pipeline.model_hash, device)

        if task.generate_share(pipeline, requests, report):
            task.score_locked(score)


def _written(
    results: list["BenchmarkResult"],
    networks: "FeatureNetworks",
    task: EvaluationJob,
    model_hash: str | None,
    device: "torch.device",
) -> Written:
    from magicvideo.atomic_io import hash_folder
    from magicvideo.evaluation.benchmark.report import as_json, as_markdown, network_identities
    from magicvideo.evaluation.judge.network import SHIPPED
    from magicvideo.evaluation.provenance import provenance

    hashes = network_identities(networks, hash_folder(task.judge or SHIPPED))
    facts = provenance({"model": model_hash, **hashes}, {}, device.type)
    page = as_markdown(results, facts, task.section, task.command)
    return page, [as_json(result, facts) for result in results]


def _networks(
    judge: Path | None, options: BenchmarkOptions, device: "torch.device"
) -> "FeatureNetworks":
    from magicvideo.evaluation.benchmark.features import FeatureNetworks
    from magicvideo.evaluation.judge.network import SHIPPED, load_judge
    from magicvideo.evaluation.networks.clip import CLIPEncoder
    from magicvideo.evaluation.networks.extractors import I3D, Inception, locate_file, locate_folder

    i3d = locate_file(options.i3d, "I3D") if options.i3d else None
    inception = locate_file(options.inception, "Inception-v3") if options.inception else None
    clip = locate_folder(options.clip, "CLIP") if options.clip else None
    return FeatureNetworks(
        judge=load_judge(judge or SHIPPED),
        i3d=I3D(i3d, device) if i3d else None,
        inception=Inception(inception, device) if inception else None,
        clip=CLIPEncoder(clip, device) if clip else None,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """The model, the judge, and the real clips."""

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
    from magicvideo.data.workers import Rank
    from magicvideo.evaluation.benchmark.protocol import Benchmark
    from magicvideo.evaluation.protocol import read_any_protocol, section_name, sweep_points

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
        rank=Rank.from_env(),
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

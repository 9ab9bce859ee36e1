"""What `magicvideo evaluate PROTOCOL` does with a benchmark: networks, videos, scores, report."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from magicvideo.cli.evaluate.options import command_line
from magicvideo.cli.evaluate.preparing import load, process_device, progress
from magicvideo.errors import UserError

if TYPE_CHECKING:
    import torch

    from magicvideo.evaluate.benchmark.measure import Networks
    from magicvideo.evaluate.benchmark.protocol import Benchmark
    from magicvideo.evaluate.benchmark.run import BenchmarkResult, BenchmarkRun


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What a user chose; the names are those of the command line."""

    reference: Path | None
    generated: Path | None
    i3d: str | None
    inception: str | None
    clip: str | None
    samples: int | None
    allow_fewer: bool
    model: Path | None
    judge: Path | None

    def foreign(self) -> str | None:
        """Return the first option given that other protocols have no use for."""
        own = ("reference", "generated", "i3d", "inception", "clip", "samples", "allow_fewer")
        given = (name.replace("_", "-") for name in own if getattr(self, name))
        return next(given, None)

    def command(self, typed: str | Path) -> str:
        """Return the command line that a user would type again."""
        shown = {name: value for name, value in asdict(self).items() if name != "allow_fewer"}
        for name in ("i3d", "inception", "clip"):
            value = shown[name]
            if value is not None and not value.startswith("hub:"):
                shown[name] = Path(value)
        flag = " --allow-fewer" if self.allow_fewer else ""
        return command_line([typed], shown) + flag


def score_benchmark(
    settings: "Benchmark", typed: str | Path, options: BenchmarkOptions, work: Path
) -> tuple[str, str] | None:
    """Return the section and the JSON of a benchmark.

    None where this process made its share of the videos and others are still at theirs.

    Raises:
        UserError: If an option or the data cannot give what the benchmark asks for.
    """
    if options.reference is None:
        raise UserError(f"{settings.name} needs --reference, the folder of the real clips.")
    if options.generated is not None and options.model is not None:
        raise UserError("--generated takes the place of a model; leave --model or it out.")
    if options.samples is not None and not options.allow_fewer:
        raise UserError("--samples gives fewer than the protocol asks; add --allow-fewer to it.")
    from magicvideo.evaluate.benchmark.report import as_json, as_markdown, network_identities
    from magicvideo.evaluate.benchmark.run import BenchmarkRun
    from magicvideo.evaluate.identity import identity
    from magicvideo.evaluate.judge.files import SHIPPED
    from magicvideo.storage import folder_hash

    device = process_device()
    run = BenchmarkRun(
        benchmark=settings,
        networks=_networks(options, device),
        reference=options.reference,
        work=work,
        samples=options.samples,
        allow_fewer=options.allow_fewer,
    )
    found = _score(run, options)
    if found is None:
        return None
    result, model_hash = found
    hashes = network_identities(run.networks, folder_hash(options.judge or SHIPPED))
    facts = identity({"model": model_hash, **hashes}, {}, device.type)
    return as_markdown(result, facts, options.command(typed)), as_json(result, facts)


def _score(
    run: "BenchmarkRun", options: BenchmarkOptions
) -> tuple["BenchmarkResult", str | None] | None:
    if options.generated is not None:
        with progress() as report:
            return run.score_folder(options.generated, report), None
    from magicvideo.evaluate.share import process_share

    share = process_share()
    run.check()
    pipeline = load(options.model)
    requests = run.requests(pipeline)
    with progress() as report:
        there = run.generate(pipeline, requests, share, report)
        if there < len(requests):
            typer.echo(
                f"{there} of {len(requests)} videos are made; the process that makes the last one "
                "scores them, and the same command goes on after a stop.",
                err=True,
            )
            return None
        name = options.model.resolve().name if options.model else "the shipped model"
        return run.score_model(pipeline, requests, name, report), pipeline.model_hash


def _networks(options: BenchmarkOptions, device: "torch.device") -> "Networks":
    from magicvideo.evaluate.benchmark.measure import Networks
    from magicvideo.evaluate.judge.files import SHIPPED, load_judge
    from magicvideo.evaluate.networks.clip import Clip
    from magicvideo.evaluate.networks.extractors import I3D, Inception
    from magicvideo.evaluate.networks.files import locate_file, locate_folder

    i3d = locate_file(options.i3d, "I3D") if options.i3d else None
    inception = locate_file(options.inception, "Inception-v3") if options.inception else None
    clip = locate_folder(options.clip, "CLIP") if options.clip else None
    return Networks(
        judge=load_judge(options.judge or SHIPPED),
        judge_name=f"judge {options.judge.resolve().name}" if options.judge else "emoji judge",
        i3d=I3D(i3d, device) if i3d else None,
        inception=Inception(inception, device) if inception else None,
        clip=Clip(clip, device) if clip else None,
    )

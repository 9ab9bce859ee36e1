"""What `magicvideo evaluate PROTOCOL` does with a benchmark: networks, videos, scores, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magicvideo.cli.evaluate.job import EvaluationJob, Written
from magicvideo.cli.evaluate.options import (
    AllowFewer,
    ClipFolder,
    Generated,
    I3dFile,
    InceptionFile,
    Samples,
)
from magicvideo.cli.evaluate.setup import load, process_device, progress
from magicvideo.errors import UserError

if TYPE_CHECKING:
    import torch

    from magicvideo.evaluation.benchmark.features import FeatureNetworks
    from magicvideo.evaluation.benchmark.protocol import Benchmark
    from magicvideo.evaluation.benchmark.run import BenchmarkResult, BenchmarkRun


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
    from magicvideo.evaluation.judge.checkpoint import SHIPPED
    from magicvideo.evaluation.provenance import provenance

    hashes = network_identities(networks, hash_folder(task.judge or SHIPPED))
    facts = provenance({"model": model_hash, **hashes}, {}, device.type)
    page = as_markdown(results, facts, task.section, task.command)
    return page, [as_json(result, facts) for result in results]


def _networks(
    judge: Path | None, options: BenchmarkOptions, device: "torch.device"
) -> "FeatureNetworks":
    from magicvideo.evaluation.benchmark.features import FeatureNetworks
    from magicvideo.evaluation.judge.checkpoint import SHIPPED, load_judge
    from magicvideo.evaluation.networks.clip import CLIPEncoder
    from magicvideo.evaluation.networks.extractors import I3D, Inception
    from magicvideo.evaluation.networks.files import locate_file, locate_folder

    i3d = locate_file(options.i3d, "I3D") if options.i3d else None
    inception = locate_file(options.inception, "Inception-v3") if options.inception else None
    clip = locate_folder(options.clip, "CLIP") if options.clip else None
    return FeatureNetworks(
        judge=load_judge(judge or SHIPPED),
        i3d=I3D(i3d, device) if i3d else None,
        inception=Inception(inception, device) if inception else None,
        clip=CLIPEncoder(clip, device) if clip else None,
    )

"""The result of a benchmark as JSON and as a section of the page next to published results."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from magicvideo.evaluation.benchmark.features import METHOD, FeatureNetworks
from magicvideo.evaluation.benchmark.protocol import Crop
from magicvideo.evaluation.benchmark.run import BenchmarkResult
from magicvideo.evaluation.benchmark.scores import Column, MetricResult
from magicvideo.evaluation.confidence_intervals import RESAMPLES, Estimate
from magicvideo.evaluation.protocol import sampling_label
from magicvideo.evaluation.results_page import (
    format_estimate,
    markdown_table,
    nan_to_none,
    provenance_table,
    zip_rows,
)

_ROWS = Path(__file__).parent / "published.yaml"


class PublishedResult(BaseModel):
    """One model on one data set; None where nothing was published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    data: Literal["msr-vtt", "ucf-101"]
    fid: float | None = None
    clip_fid: float | None = None
    """Frechet distance of frames by features of CLIP."""
    fvd: float | None = None
    clipsim: float | None = None
    inception: float | None = Field(default=None, alias="is")
    """Inception Score of C3D trained on UCF-101, which is not that of single frames."""
    source: str
    note: str = ""


def published_rows(data: str | None) -> list[PublishedResult]:
    """Return the results on a data set, ordered by publication where known."""
    rows = TypeAdapter(list[PublishedResult]).validate_python(
        yaml.safe_load(_ROWS.read_text(encoding="utf-8"))
    )
    return [row for row in rows if row.data == data]


_PUBLISHED: tuple[tuple[str, Column], ...] = (
    ("FID", "fid"),
    ("CLIP-FID", "clip_fid"),
    ("FVD", "fvd"),
    ("CLIPSIM", "clipsim"),
)
_CROPS: dict[Crop, str] = {"centre": "the centre square", "none": "all of it squashed"}
_EXPLAINED = (
    "*Real clips*: two halves of the real clips against each other for distances, precision and "
    "recall, which is the floor that so few clips leave; all real clips for the rest. Intervals of "
    "95 %: shares are Wilson's, all others bootstrapped over clips, means {means} times and the "
    "rest {resamples} times. Covariances are divided by {divisor}. *Infinite samples*: a line over "
    "1/n, read at zero."
)
_JUDGED = (
    "Rows of the {judge} come from a network trained on emoji. They are not FVD, FID or "
    "CLIPSIM, and can be compared only with each other."
)


def network_identities(networks: FeatureNetworks, judge_hash: str) -> dict[str, Any]:
    """Return name and SHA-256 of every network that was used."""
    found = {networks.judge.name: judge_hash}
    for role, network in (
        ("I3D", networks.i3d),
        ("Inception", networks.inception),
        ("CLIP", networks.clip),
    ):
        if network is not None:
            found[f"{role}, {network.located.name}"] = network.located.sha256
    return found


def as_json(result: BenchmarkResult, identity: dict[str, Any]) -> str:
    """Return the result as JSON text, with the whole protocol; what is not finite is null."""
    document = {
        "protocol": result.benchmark.model_dump(mode="json"),
        "model": result.model,
        "caveats": result.caveats,
        "scores": [asdict(figure) for figure in result.metrics],
        "generated": result.generated,
        "real": result.real,
        "networks": result.networks,
        "method": METHOD,
        "identity": identity,
    }
    return json.dumps(nan_to_none(document), indent=2, allow_nan=False) + "\n"


def as_markdown(
    results: Sequence[BenchmarkResult],
    identity: dict[str, Any],
    title: str,
    command: str,
) -> str:
    """Return results as a section of a Markdown page, next to published rows.

    Args:
        results: One, or several that differ in steps and guidance alone. Where the title is not
            the benchmark's own name, rows say what they were made with.
        identity: What the numbers depend on.
        title: Of the section.
        command: The command that made it.
    """
    first = results[0]
    benchmark = first.benchmark
    judges = [figure.network for figure in first.metrics if "judge" in figure.network]
    labelled = [("" if title == benchmark.name else _sampling(one), one) for one in results]
    parts = [
        f"## {title}",
        f"`{command}`",
        f"{benchmark.about.strip()} Version {benchmark.version} of the protocol.",
        _method(first),
        _marks(first),
        _figures_table(labelled),
        _EXPLAINED.format(
            means=RESAMPLES,
            resamples=benchmark.statistics.resamples,
            divisor=benchmark.statistics.covariance_divisor,
        ),
        _JUDGED.format(judge=judges[0].split(",")[0]) if judges else "",
        _beside_published(labelled),
        provenance_table(identity),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sampling(result: BenchmarkResult) -> str:
    made = result.generated["settings"]
    return sampling_label(made["num_inference_steps"], made["guidance_scale"])


def _method(result: BenchmarkResult) -> str:
    preprocessing, real, made = result.benchmark.preprocessing, result.real, result.generated
    return (
        f"{made['count']} videos of {result.model} (from {made['container']}) at "
        f"{_rates(made['fps'])} against {real['count']} real clips of {real['folder']} "
        f"(from {real['container']}) at {_rates(real['fps'])}. Of both kinds "
        f"{preprocessing.frames} frames in the middle at stride {preprocessing.stride}, "
        f"{_CROPS[preprocessing.crop]} at {preprocessing.side} pixels ({preprocessing.filter}), in "
        f"8 bits; {preprocessing.image_frames} of the frames for networks of single frames. "
        f"{len(real['skipped'])} real clips could not be used."
    )


def _rates(fps: dict[str, float]) -> str:
    return f"{fps['least']:g} to {fps['most']:g} frames per second"


def _marks(result: BenchmarkResult) -> str:
    return f"**Not the whole protocol:** {'; '.join(result.caveats)}." if result.caveats else ""


def _figures_table(labelled: Sequence[tuple[str, BenchmarkResult]]) -> str:
    columns = [
        "measure",
        "features of",
        "n",
        "measured [95 %]",
        "real clips [n]",
        "infinite samples",
    ]
    tables = [(label, [_figure_row(one) for one in found.metrics]) for label, found in labelled]
    if not labelled[0][0]:
        return markdown_table(columns, tables[0][1])
    return markdown_table([columns[0], "with", *columns[1:]], zip_rows(tables))


def _figure_row(figure: MetricResult) -> tuple[str, ...]:
    digits = figure.digits
    real = f"{format_estimate(Estimate(figure.real.value, 0), digits)} [{figure.real.count}]"
    endless = "" if figure.extrapolated is None else f"{figure.extrapolated:.{digits}f}"
    measured = f"**{format_estimate(figure.measured, digits)}**"
    return (figure.name, figure.network, str(figure.measured.count), measured, real, endless)


def _beside_published(labelled: Sequence[tuple[str, BenchmarkResult]]) -> str:
    """Return our rows next to the published ones."""
    published = published_rows(labelled[0][1].benchmark.data)
    if not published:
        return ""
    rows = [
        *(_own_row(label, found) for label, found in labelled),
        *(
            (
                row.model,
                _cell(row.fid, 2),
                _cell(row.clip_fid, 2),
                _cell(row.fvd, 2),
                _cell(row.clipsim, 4),
                _cell(row.inception, 2),
                f"{row.source}{f' ({row.note})' if row.note else ''}",
            )
            for row in published
        ),
    ]
    names = [name for name, _ in _PUBLISHED]
    heading = f"### Beside published rows, {published[0].data.upper()}"
    about = (
        "As printed by the sources, whose protocols differ. Only networks of the papers put a "
        "number into a column; `IS (C3D)` is that of C3D trained on UCF-101, which is not here. "
        "The leaderboard is that of github.com/feifeiobama/Awesome-Text-to-Video-Generation."
    )
    return "\n\n".join(
        [heading, about, markdown_table(("model", *names, "IS (C3D)", "from"), rows)]
    )


def _own_row(label: str, result: BenchmarkResult) -> tuple[str, ...]:
    own = {figure.column: figure for figure in result.metrics if figure.column}
    remarks = "; ".join([f"{result.generated['count']} videos", *result.caveats])
    return (
        f"**{', '.join(filter(None, (result.model, label)))}**",
        *(_own_cell(own.get(column)) for _, column in _PUBLISHED),
        "-",
        f"measured here, {remarks}",
    )


def _own_cell(figure: MetricResult | None) -> str:
    return "-" if figure is None else f"**{format_estimate(figure.measured, figure.digits)}**"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

"""The page of ablations: its text and its tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magicvideo.atomic_io import atomic_file
from magicvideo.evaluation.confidence_intervals import proportion
from magicvideo.evaluation.metrics.motion import LEVELS
from magicvideo.evaluation.results_page import format_estimate, markdown_table, provenance_table
from studies.ablations.plots import draw_plot
from studies.ablations.results import (
    VariantResult,
    collect_results,
    mean_and_range,
    paired_difference,
)
from studies.ablations.scoring import Scores
from studies.ablations.settings import Ablations, Experiment, ScoringConfig

_SHARES = ("caption_first", "caption_first_same_background")
_VIDEOS = {
    **dict.fromkeys(_SHARES, (1, 100.0)),
    "frechet": (4, 1.0),
    "temporal_change": (2, 1.0),
    "flicker": (2, 1.0),
}
"""Digits and scale of what is measured of generated videos."""
_DECODER_MEASURES = {
    "flicker": ("flicker, levels", 3, LEVELS),
    "temporal error": ("temporal error, levels", 3, LEVELS),
    "psnr": ("PSNR, dB", 2, 1.0),
}
_GAINS = {"flicker, times [95 %]": "flicker", "PSNR, plus [95 %]": "psnr"}
"""What is compared clip by clip with the decoder that all began as."""
MISSING = "missing"


def denoiser_table(
    experiment: Experiment, scoring: ScoringConfig, rows: Sequence[VariantResult]
) -> str:
    """Return the quality of denoisers: the held-out error, and what is measured of videos."""
    baseline = next(row for row in rows if row.variant == experiment.baseline)
    columns = (
        "variant",
        "seeds",
        "held-out error",
        f"more than {baseline.label} [95 %]",
        "of it between frames",
        f"own caption first among {scoring.pool_size}, % [95 %]",
        "the same, same background, % [95 %]",
        "Frechet distance, judge's features",
        "temporal change",
        "flicker",
    )
    cells = [_denoiser_cells(row, baseline, len(columns)) for row in rows]
    known = [scores for row in rows for scores in row.scores.values()]
    if known:
        real = [_real_cell(known[0], name) for name in _VIDEOS]
        cells.append(["real clips", "", "", "", "", *real])
    return markdown_table(columns, cells)


def cost_table(rows: Sequence[VariantResult], *, with_pass: bool) -> str:
    """Return size and cost of what is trained last; `with_pass`, what a pass over a clip takes."""
    columns = (
        "variant",
        "parameters (10^6)",
        *(("GFLOPs of a pass over a clip", "CPU seconds of a pass") if with_pass else ()),
        "memory of training, GB",
        "seconds of an update",
        "updates",
        "training in all, TFLOPs",
    )
    missing = [MISSING, *[""] * (len(columns) - 2)]
    cells = [
        [row.label, *(_cost_cells(row, with_pass=with_pass) if row.scores else missing)]
        for row in rows
    ]
    return markdown_table(columns, cells)


def decoder_table(scoring: ScoringConfig, rows: Sequence[VariantResult]) -> str:
    """Return the quality of decoders on clean and on noisy latents."""
    columns = (
        "noise",
        "decoder",
        "seeds",
        *(label for label, _, _ in _DECODER_MEASURES.values()),
        *_GAINS,
    )
    cells = []
    for place, noise in enumerate(scoring.decoder_noise):
        trained = [row for row in rows if row.scores]
        if trained:
            before = [_decoder_cell(trained[0], place, name, "first") for name in _DECODER_MEASURES]
            still = [""] * len(_GAINS)
            cells.append([f"{noise:g}", "of single frames, as all began", "", *before, *still])
        for row in rows:
            values = (
                [
                    *(_decoder_cell(row, place, name, "second") for name in _DECODER_MEASURES),
                    *(_gain_cell(row, place, name) for name in _GAINS.values()),
                ]
                if row.scores
                else [""] * (len(_DECODER_MEASURES) + len(_GAINS))
            )
            cells.append([f"{noise:g}", row.label, seeds_cell(row), *values])
    return markdown_table(columns, cells)


def upscaler_table(rows: Sequence[VariantResult]) -> str:
    """Return the quality of upscalers by their steps, and of resizing by the same scale."""
    columns = (
        "scale",
        "seeds",
        "enlarged by",
        "PSNR, dB",
        "SSIM",
        "Frechet distance",
        "CPU seconds a frame",
        "flicker, levels",
    )
    cells = []
    for row in rows:
        if not row.scores:
            cells.append([row.label, MISSING, *[""] * (len(columns) - 2)])
            continue
        first = next(iter(row.scores.values()))["upscaler"]
        for place, way in enumerate(first["ways"]):
            cells.append([row.label, seeds_cell(row), way["name"], *_way_cells(row, place)])
    return markdown_table(columns, cells)


def seeds_cell(row: VariantResult) -> str:
    """Return how many seeds have scores."""
    if not row.scores:
        return MISSING
    there, wanted = len(row.scores), len(row.seeds)
    return str(there) if there == wanted else f"{there}, {wanted - there} {MISSING}"


def _denoiser_cells(row: VariantResult, baseline: VariantResult, width: int) -> list[str]:
    if not row.scores:
        return [row.label, MISSING, *[""] * (width - 2)]
    return [
        row.label,
        seeds_cell(row),
        mean_and_range(row.values(lambda scores: _mean_of(scores, "error")), 4),
        _difference_cell(row, baseline),
        mean_and_range(row.values(lambda scores: _mean_of(scores, "deviation")), 4),
        *(_video_cell(row, name) for name in _VIDEOS),
    ]


def _difference_cell(row: VariantResult, baseline: VariantResult) -> str:
    if row.variant == baseline.variant:
        return ""
    difference = paired_difference(row, baseline, "error")
    return MISSING if difference is None else format_estimate(difference, 4)


def _mean_of(scores: Scores, measure: str) -> float:
    values = scores["denoising"][measure]
    return sum(values) / len(values)


def _video_cell(row: VariantResult, name: str) -> str:
    digits, scale = _VIDEOS[name]
    if any(name not in scores["videos"] for scores in row.scores.values()):
        return ""
    if name in _SHARES:
        return _share_cell([scores["videos"][name] for scores in row.scores.values()])
    return mean_and_range(
        row.values(lambda scores: scores["videos"][name]["measured"]), digits, scale
    )


def _share_cell(seeds: Sequence[Scores]) -> str:
    """Return the share of hits among the videos of all seeds, in percent, with its interval."""
    counts = [(round(found["measured"] * found["count"]), found["count"]) for found in seeds]
    hits, total = (sum(column) for column in zip(*counts, strict=True))
    found = proportion(np.arange(total) < hits)
    assert found.low is not None
    assert found.high is not None
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _real_cell(scores: Scores, name: str) -> str:
    digits, scale = _VIDEOS[name]
    found = scores["videos"].get(name)
    return f"{scale * found['real']:.{digits}f}" if found else ""


def _cost_cells(row: VariantResult, *, with_pass: bool) -> list[str]:
    cost = next(iter(row.scores.values()))["cost"]
    one_pass = (
        [
            f"{cost['gflops']:.2f}",
            f"{min(row.values(lambda scores: scores['denoising']['seconds'])):.3f}",
        ]
        if with_pass
        else []
    )
    return [
        f"{cost['parameters'] / 1e6:.2f}",
        *one_pass,
        f"{cost['memory'] / 1e9:.2f}",
        f"{min(row.values(lambda scores: scores['cost']['seconds'])):.2f}",
        f"{cost['updates']:,}",
        f"{cost['training_gflops'] / 1e3:,.1f}",
    ]


def _decoder_cell(row: VariantResult, place: int, name: str, side: str) -> str:
    _, digits, scale = _DECODER_MEASURES[name]

    def read(scores: Scores) -> float:
        measures = scores["decoder"][place]["measures"]
        return next(found[side] for found in measures if found["name"] == name)

    return mean_and_range(row.values(read), digits, scale)


def _gain_cell(row: VariantResult, place: int, name: str) -> str:
    """Return the mean of all seeds, and the outermost ends of their intervals."""
    gains = [
        found["gain"]
        for scores in row.scores.values()
        for found in scores["decoder"][place]["measures"]
        if found["name"] == name
    ]
    low, high = min(gain["low"] for gain in gains), max(gain["high"] for gain in gains)
    return f"{np.mean([gain['value'] for gain in gains]):.3f} [{low:.3f}, {high:.3f}]"


def _way_cells(row: VariantResult, place: int) -> list[str]:
    ways = [scores["upscaler"]["ways"][place] for scores in row.scores.values()]
    digits = {"psnr": 2, "ssim": 4, "frechet": 5, "seconds": 3}
    cells = [
        mean_and_range([way[name] for way in ways], figures) for name, figures in digits.items()
    ]
    flickers = [way["flicker"] for way in ways]
    return [*cells, "" if None in flickers else mean_and_range(flickers, 4)]


_BUDGETS = {
    "updates": "All variants have the updates of their recipe, whatever an update costs.",
    "cost": "The training of every variant has the FLOPs of {baseline}: a variant whose updates "
    "cost more, or that has one more stage, has fewer updates in its last stage.",
}
_DENOISER = (
    "*Held-out error*: the mean squared error of the prediction on {clips} clips of the {split} "
    "split, conditioned on their captions, at the steps {timesteps} of 1000 and the same noise "
    "for all variants; lower is better. *More than*: its difference from the baseline's, clip by "
    "clip and averaged over the seeds, with an interval bootstrapped over clips. *Of it between "
    "frames*: the part of the error that differs from frame to frame. The other columns are of "
    "{prompts} videos of the same split's captions ({scheduler}, {steps} steps, guidance "
    "{guidance:g}): the share whose own caption the judge ranks first, the Frechet distance on "
    "the judge's features, and change in time of the whole picture and of its corners as "
    "multiples of the real clips'. *Same background*: among captions of the same colour behind "
    "the figure, which then tells nothing. Shares are of the videos of all seeds with Wilson's "
    "interval, a little too narrow, since all seeds have the same captions. The Frechet distance "
    "of {prompts} clips is mostly what so few of them cost, as the real clips' own row says."
)
_DECODER = (
    "{clips} clips of the {split} split, {frames} frames in a row, on the same latents; *noise* is "
    "its standard deviation on them, anew in every frame. *Flicker*: mean absolute change of "
    "pixels that never change in the real clip. *Temporal error*: between the changes in time and "
    "the real ones. *Times* and *plus*: of the decoder that all began as, clip by clip, the mean "
    "of the seeds and the outermost ends of their bootstrapped intervals."
)
_UPSCALER = (
    "{clips} large frames of the held-out split, shrunk by the scale and enlarged again. The "
    "Frechet distance is on CLIP's embeddings of crops at full resolution. *Flicker*: the mean "
    "absolute change where no pixel of the small frames changes, of the way with the default "
    "number of steps and of resizing alone."
)
_PASS = (
    "*Pass*: the denoiser's forward pass over one clip, its operations counted and its CPU seconds "
    "the median of those above."
)
_COST = (
    "*Memory*: counted, of training with the recipe's batch: weights, gradients, moments, averages "
    "and what is kept for the backward pass. *Seconds of an update*: of the last stage, on the "
    "clock; nine updates in ten took longer. Seconds are the least of the seeds', since other work "
    "on the machine only adds to them. *In all*: of all stages, those that several variants share "
    "too."
)


def write_page(ablations: Ablations, page: Path, command: str, judge_hash: str) -> None:
    """Write the page, and a plot of every experiment that has scores by this judge beside it.

    Raises:
        UserError: If a recipe is not allowed, or matplotlib is missing.
    """
    parts = [
        "# Ablations",
        f"Written by `{command}`.",
        ablations.about.strip(),
        f"Every variant has {len(ablations.seeds)} seeds. A number is the mean over them, "
        "with the least and the greatest in brackets. Scores come from the bundled judge and the "
        "emoji clips; they can be compared only with each other.",
    ]
    identities: dict[str, Any] = {}
    for name in ablations.experiments:
        rows = collect_results(ablations, name, judge_hash)
        for scores in (scores for row in rows for scores in row.scores.values()):
            identities.setdefault(json.dumps(scores["identity"]), scores["identity"])
        parts += _section(ablations, name, rows, page)
    if identities:
        parts += ["## What the numbers depend on", *map(provenance_table, identities.values())]
    with atomic_file(page) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _section(ablations: Ablations, name: str, rows: list[VariantResult], page: Path) -> list[str]:
    experiment, scoring = ablations.experiments[name], ablations.scoring
    baseline = experiment.variants[experiment.baseline].label
    parts = [
        f"## {experiment.title}",
        experiment.about.strip(),
        f"{_BUDGETS[experiment.budget].format(baseline=baseline)} {_updates(experiment, rows)}",
    ]
    if experiment.paper:
        parts.append(f"**The paper**: {experiment.paper.strip()}")
    if experiment.found:
        parts.append(f"**Here**: {experiment.found.strip()}")
    if experiment.model_kind == "denoiser":
        parts += [denoiser_table(experiment, scoring, rows), cost_table(rows, with_pass=True)]
    elif experiment.model_kind == "decoder":
        parts += [decoder_table(scoring, rows), cost_table(rows, with_pass=False)]
    else:
        parts += [upscaler_table(rows), cost_table(rows, with_pass=False)]
    parts.append(_method(ablations, experiment))
    if absent := [
        f"{row.label} (seed {s})" for row in rows for s in row.seeds if s not in row.scores
    ]:
        parts.append(f"**Not there yet**: {'; '.join(absent)}. Their cells say {MISSING}.")
    if any(row.scores for row in rows):
        plot = page.with_name(f"{page.stem}-{name}.svg")
        draw_plot(experiment, scoring, rows, plot)
        parts.append(f"![{experiment.title}]({plot.name})")
    return parts


def _updates(experiment: Experiment, rows: list[VariantResult]) -> str:
    """Return how long the baseline was trained, stage by stage; the tables say it of the last."""
    recipe = next(row.recipe for row in rows if row.variant == experiment.baseline)
    stages = [
        f"{name} {stage.steps:,} of {stage.batch_size * stage.gradient_accumulation_steps}"
        for name, stage in recipe.stages().items()
    ]
    label = experiment.variants[experiment.baseline].label
    return f"Updates of {label}, and samples in each: {', '.join(stages)}."


def _method(ablations: Ablations, experiment: Experiment) -> str:
    scoring = ablations.scoring
    if experiment.model_kind == "denoiser":
        quality = _DENOISER.format(
            clips=scoring.loss_clips,
            split=scoring.split,
            timesteps=", ".join(map(str, scoring.timesteps)),
            prompts=scoring.prompts,
            scheduler=scoring.scheduler,
            steps=scoring.num_inference_steps,
            guidance=scoring.guidance_scale,
        )
        return f"{quality} {_PASS} {_COST}"
    if experiment.model_kind == "decoder":
        quality = _DECODER.format(
            clips=scoring.decoder_clips, split=scoring.split, frames=scoring.num_frames
        )
        return f"{quality} {_COST}"
    return f"{_UPSCALER.format(clips=scoring.upscaler_clips)} {_COST}"

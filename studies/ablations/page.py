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
"""Digits and scale of each measure of generated videos."""
_DECODER_MEASURES = {
    "flicker": ("flicker, levels", 3, LEVELS),
    "temporal error": ("temporal error, levels", 3, LEVELS),
    "psnr": ("PSNR, dB", 2, 1.0),
}
_GAINS = {"flicker ratio [95 %]": "flicker", "PSNR difference [95 %]": "psnr"}
"""Comparisons with the initial decoder on the same clips."""
MISSING = "missing"


def denoiser_table(
    experiment: Experiment, scoring: ScoringConfig, rows: Sequence[VariantResult]
) -> str:
    """Return the table of denoisers: the held-out error, and the scores of generated videos."""
    baseline = next(row for row in rows if row.variant == experiment.baseline)
    columns = (
        "variant",
        "seeds",
        "held-out error",
        f"difference to {baseline.label} [95 %]",
        "error between frames",
        f"own caption first among {scoring.pool_size}, % [95 %]",
        "first among captions with the same background, % [95 %]",
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
    """Return the table of sizes and training costs; `with_pass` adds the cost of a forward pass."""
    columns = (
        "variant",
        "parameters (10^6)",
        *(("GFLOPs per forward pass", "CPU seconds per forward pass") if with_pass else ()),
        "training memory, GB",
        "seconds per update",
        "updates",
        "TFLOPs of all training",
    )
    missing = [MISSING, *[""] * (len(columns) - 2)]
    cells = [
        [row.label, *(_cost_cells(row, with_pass=with_pass) if row.scores else missing)]
        for row in rows
    ]
    return markdown_table(columns, cells)


def decoder_table(scoring: ScoringConfig, rows: Sequence[VariantResult]) -> str:
    """Return the table of decoders on clean and on noisy latents."""
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
            cells.append([f"{noise:g}", "initial frame decoder", "", *before, *still])
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
    """Return the table of upscalers by number of steps, and of resizing by the same scale."""
    columns = (
        "scale",
        "seeds",
        "method",
        "PSNR, dB",
        "SSIM",
        "Frechet distance",
        "CPU seconds per frame",
        "flicker, levels",
    )
    cells = []
    for row in rows:
        if not row.scores:
            cells.append([row.label, MISSING, *[""] * (len(columns) - 2)])
            continue
        first = next(iter(row.scores.values()))["upscaler"]
        for place, method in enumerate(first["methods"]):
            cells.append([row.label, seeds_cell(row), method["name"], *_method_cells(row, place)])
    return markdown_table(columns, cells)


def seeds_cell(row: VariantResult) -> str:
    """Return the number of seeds that have scores."""
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
    """Return the percentage of hits among the videos of all seeds, with its interval."""
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
    """Return the mean over the seeds, with the union of their intervals."""
    gains = [
        found["gain"]
        for scores in row.scores.values()
        for found in scores["decoder"][place]["measures"]
        if found["name"] == name
    ]
    low, high = min(gain["low"] for gain in gains), max(gain["high"] for gain in gains)
    return f"{np.mean([gain['value'] for gain in gains]):.3f} [{low:.3f}, {high:.3f}]"


def _method_cells(row: VariantResult, place: int) -> list[str]:
    methods = [scores["upscaler"]["methods"][place] for scores in row.scores.values()]
    digits = {"psnr": 2, "ssim": 4, "frechet": 5, "seconds": 3}
    cells = [
        mean_and_range([method[name] for method in methods], figures)
        for name, figures in digits.items()
    ]
    flickers = [method["flicker"] for method in methods]
    return [*cells, "" if None in flickers else mean_and_range(flickers, 4)]


_BUDGETS = {
    "updates": "All variants are trained for the number of updates in their recipe, whatever an "
    "update costs.",
    "cost": "All variants are trained with the same number of FLOPs as {baseline}: a variant whose "
    "updates cost more, or that has one more stage, has fewer updates in its last stage.",
}
_DENOISER = (
    "*Held-out error*: the mean squared error of the prediction on {clips} clips of the {split} "
    "split, conditioned on their captions, at the timesteps {timesteps} of 1000 and with the same "
    "noise for all variants; lower is better. *Difference*: to the error of the baseline on the "
    "same clips, averaged over the seeds, with an interval bootstrapped over clips. *Error between "
    "frames*: the part of the error that differs from frame to frame. The other columns are "
    "measured on {prompts} videos of captions of the same split ({scheduler}, {steps} steps, "
    "guidance {guidance:g}): the fraction whose own caption the judge ranks first, the Frechet "
    "distance on the judge's features, and the temporal change of whole frames and of the corners "
    "relative to real clips. *Same background*: all captions have the same background colour, "
    "which then gives no information. Fractions are over the videos of all seeds with Wilson "
    "intervals; these are slightly too narrow, because all seeds have the same captions. The "
    "Frechet distance of {prompts} clips is mostly the bias of a small sample, as the row of the "
    "real clips shows."
)
_DECODER = (
    "{clips} clips of the {split} split, {frames} consecutive frames, on the same latents. "
    "*Noise*: standard deviation of the noise that is added to the latents of every frame. "
    "*Flicker*: mean absolute change of pixels that never change in the real clip. *Temporal "
    "error*: mean absolute difference between the changes from frame to frame and those of the "
    "real clip. *Ratio* and *difference*: to the initial decoder on the same clips, the mean over "
    "the seeds with the union of their bootstrapped intervals."
)
_UPSCALER = (
    "{clips} large frames of the held-out split, downsampled by the scale and upscaled again. The "
    "Frechet distance is on CLIP embeddings of crops at full resolution. *Flicker*: the mean "
    "absolute change of pixels that never change in the small frames; it is measured for the "
    "default number of steps and for resizing."
)
_PASS = (
    "*Forward pass*: of the denoiser over one clip; FLOPs are counted, and CPU seconds are the "
    "median over the passes of the held-out error."
)
_COST = (
    "*Training memory*: counted for the recipe's batch: weights, gradients, optimizer state, EMA "
    "weights and saved activations. *Seconds per update*: wall time in the last stage, the 10th "
    "percentile. All seconds are the minimum over the seeds, because other processes on the "
    "machine only increase them. *All training*: all stages, including stages that variants share."
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
        f"Every variant has {len(ablations.seeds)} seeds. A number is the mean over the seeds, "
        "with the minimum and the maximum in brackets. Scores come from the bundled judge and the "
        "emoji clips, so they can be compared only with each other.",
    ]
    identities: dict[str, Any] = {}
    for name in ablations.experiments:
        rows = collect_results(ablations, name, judge_hash)
        for scores in (scores for row in rows for scores in row.scores.values()):
            identities.setdefault(json.dumps(scores["identity"]), scores["identity"])
        parts += _section(ablations, name, rows, page)
    if identities:
        parts += ["## Provenance", *map(provenance_table, identities.values())]
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
        parts.append(f"**Without scores yet**: {'; '.join(absent)}. Their cells say {MISSING}.")
    if any(row.scores for row in rows):
        plot = page.with_name(f"{page.stem}-{name}.svg")
        draw_plot(experiment, scoring, rows, plot)
        parts.append(f"![{experiment.title}]({plot.name})")
    return parts


def _updates(experiment: Experiment, rows: list[VariantResult]) -> str:
    """Return updates and batch size of each stage of the baseline."""
    recipe = next(row.recipe for row in rows if row.variant == experiment.baseline)
    stages = [
        f"{name} {stage.steps:,} x {stage.batch_size * stage.gradient_accumulation_steps}"
        for name, stage in recipe.stages().items()
    ]
    label = experiment.variants[experiment.baseline].label
    return f"Updates x samples per update of {label}: {', '.join(stages)}."


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

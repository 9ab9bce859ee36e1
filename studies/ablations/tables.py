"""The tables of the page, one shape for each kind of model."""

from collections.abc import Sequence

import numpy as np

from magicvideo.evaluation.confidence_intervals import proportion
from magicvideo.evaluation.metrics.motion import LEVELS
from magicvideo.evaluation.results_page import format_estimate, markdown_table
from studies.ablations.results import VariantResult, mean_and_range, paired_difference
from studies.ablations.scoring import Scores
from studies.ablations.settings import Experiment, ScoringConfig

_SHARES = ("caption_first", "caption_first_same_background")
_VIDEOS = {
    **dict.fromkeys(_SHARES, (1, 100.0)),
    "frechet": (4, 1.0),
    "temporal_change": (2, 1.0),
    "flicker": (2, 1.0),
}
"""Digits and scale of what is measured of generated videos."""
_DECODER = {
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
    columns = ("noise", "decoder", "seeds", *(label for label, _, _ in _DECODER.values()), *_GAINS)
    cells = []
    for place, noise in enumerate(scoring.decoder_noise):
        trained = [row for row in rows if row.scores]
        if trained:
            before = [_decoder_cell(trained[0], place, name, "first") for name in _DECODER]
            still = [""] * len(_GAINS)
            cells.append([f"{noise:g}", "of single frames, as all began", "", *before, *still])
        for row in rows:
            values = (
                [
                    *(_decoder_cell(row, place, name, "second") for name in _DECODER),
                    *(_gain_cell(row, place, name) for name in _GAINS.values()),
                ]
                if row.scores
                else [""] * (len(_DECODER) + len(_GAINS))
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
    _, digits, scale = _DECODER[name]

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

"""Results as JSON, which holds everything, and as a section of the results page."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from magicvideo.evaluation.confidence_intervals import Estimate
from magicvideo.evaluation.evaluator import EvaluationResult, SetResult
from magicvideo.evaluation.protocol import Protocol, ScoreName, TargetRange, sampling_label
from magicvideo.evaluation.results_page import (
    markdown_table,
    nan_to_none,
    provenance_table,
    zip_rows,
)
from magicvideo.evaluation.scores import Score

_COLUMNS = (
    "measure",
    "features of",
    "n",
    "measured [95 %]",
    "real clips",
    "infinite samples (real clips)",
    "chance",
    "target",
    "",
)
_IS_SHARE: tuple[ScoreName, ...] = (
    "caption_first",
    "caption_first_five",
    "caption_first_same_background",
    "caption_first_five_same_background",
    "background_colour",
    "skin_tone",
)


def as_json(result: EvaluationResult) -> str:
    """Return the result as JSON text, with the whole protocol; what is not finite is null."""
    document = {
        "protocol": result.protocol.model_dump(mode="json"),
        "identity": result.identity,
        "sets": [
            {
                "name": found.name,
                "fps": dict(found.fps),
                "scores": [_score_document(score, found) for score in found.scores],
            }
            for found in result.sets
        ],
    }
    return json.dumps(nan_to_none(document), indent=2, allow_nan=False) + "\n"


def as_markdown(result: EvaluationResult, command: str) -> str:
    """Return the result as a section of a Markdown page, with the command that made it."""
    protocol = result.protocol
    sections = [
        f"## {protocol.name}",
        f"`{command}`",
        protocol.about.strip(),
        _method(
            protocol, f"{protocol.num_inference_steps} steps, guidance {protocol.guidance_scale:g}"
        ),
        *(_section(found, protocol) for found in result.sets),
        _columns_explained(protocol),
        provenance_table(result.identity),
    ]
    return "\n\n".join(sections) + "\n"


def score_cells(score: Score, protocol: Protocol) -> tuple[str, str, str, str, str]:
    """Return a score as text: measure, count, value and interval, real clips' value, and chance."""
    name, measured = score.name, score.measured
    return (
        _label(name, protocol),
        str(measured.count),
        f"{_number(measured.value, name)}{_interval(measured, name)}",
        _number(score.real.value, name),
        _number(score.chance.value, name),
    )


def sweep_as_markdown(results: Sequence[EvaluationResult], title: str, command: str) -> str:
    """Return the results of a sweep as one section, with the rows of a measure together.

    Args:
        results: One for each setting.
        title: Of the section.
        command: The command that made it.
    """
    protocol = results[0].protocol
    sections = [
        f"## {title}",
        f"`{command}`",
        protocol.about.strip(),
        _method(protocol, "the steps of each row, its guidance"),
        *(_sweep_section(results, place) for place in range(len(results[0].sets))),
        _columns_explained(protocol),
        provenance_table(results[0].identity),
    ]
    return "\n\n".join(sections) + "\n"


def _sweep_section(results: Sequence[EvaluationResult], place: int) -> str:
    name = results[0].sets[place].name
    tables = [
        (
            sampling_label(found.protocol.num_inference_steps, found.protocol.guidance_scale),
            _rows(found.sets[place], found.protocol),
        )
        for found in results
    ]
    if len(tables) > 1 and all(rows == tables[0][1] for _, rows in tables):
        tables = [("all", tables[0][1])]  # as those of the autoencoder are
    first, *rest = _COLUMNS
    rows = markdown_table((first, "with", *rest), zip_rows(tables))
    return f"### {name[0].upper()}{name[1:]}\n\n{rows}"


def _method(protocol: Protocol, sampled: str) -> str:
    stop = protocol.guidance_stop
    until = "" if stop == 1 else f" in the first {stop:.0%} of them"
    return (
        f"{protocol.num_frames} frames at the rate of real clips at stride {protocol.stride}, "
        f"{protocol.scheduler} with {sampled}{until}. There is one video per prompt, with seed k "
        f"for prompt k. Prompts, backgrounds and pools are sampled with seed {protocol.seed}. All "
        "videos are rounded to 8 bits."
    )


def _section(found: SetResult, protocol: Protocol) -> str:
    rows = _rows(found, protocol)
    return f"### {found.name[0].upper()}{found.name[1:]}\n\n{markdown_table(_COLUMNS, rows)}"


def _rows(found: SetResult, protocol: Protocol) -> list[tuple[str, ...]]:
    return [_row(score, found.targets.get(score.name), protocol) for score in found.scores]


def _row(score: Score, target: TargetRange | None, protocol: Protocol) -> tuple[str, ...]:
    measured, name = score.measured, score.name
    return (
        _label(name, protocol),
        score.network,
        str(measured.count),
        f"**{_number(measured.value, name)}**{_interval(measured, name)}",
        _number(score.real.value, name),
        _endless(score),
        f"{_number(score.chance.value, name)} ({score.chance_is})",
        _bounds(target, name) if target else "",
        ("met" if target.is_met(measured.value) else "not met") if target else "",
    )


def _endless(score: Score) -> str:
    ours, real = score.extrapolated, score.real_extrapolated
    if ours is None or real is None:
        return ""
    return f"{_number(ours, score.name)} ({_number(real, score.name)})"


def _label(name: ScoreName, protocol: Protocol) -> str:
    size = protocol.pool_size
    labels: dict[ScoreName, str] = {
        "caption_first": f"own caption first among {size}",
        "caption_first_five": f"own caption in the first five of {size}",
        "caption_median_rank": f"median rank of the own caption among {size}",
        "caption_first_same_background": f"own caption first among {size} on the same background",
        "caption_first_five_same_background": (
            f"own caption in the first five of {size} on the same background"
        ),
        "caption_median_rank_same_background": (
            f"median rank of the own caption among {size} on the same background"
        ),
        "background_colour": "background colour, exact",
        "skin_tone": "skin tone",
        "temporal_change": "temporal change, relative to real clips",
        "temporal_power_low": "power of slow motion, relative to real clips",
        "temporal_power_high": "power of fast change, relative to real clips",
        "flicker": "flicker of the corners, relative to real clips",
        "frechet": "Frechet distance",
        "psnr": "PSNR in dB",
    }
    return labels[name]


def _columns_explained(protocol: Protocol) -> str:
    infinite = (
        " *Infinite samples*: the intercept of a line over 1/n." if protocol.extrapolate else ""
    )
    return (
        "*Real clips*: the same measure on the real clips of the same captions; for PSNR, on "
        "frames rounded to 8 bits. *Chance*: the value of the baseline in brackets. Intervals of "
        "fractions are Wilson's, those of medians are order statistics, all others are "
        f"bootstrapped. The Frechet distance is to {protocol.reference_clips} other real clips; "
        f"the covariance is divided by {protocol.covariance_divisor}, and both sides are resampled "
        f"{protocol.resamples} times. The distance of the real clips is the lower bound; it "
        f"increases for fewer clips.{infinite}"
    )


def _number(value: float, name: ScoreName) -> str:
    if name in _IS_SHARE:
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if name == "frechet" else f"{value:.2f}"


def _interval(estimate: Estimate, name: ScoreName) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{_number(estimate.low, name)}, {_number(estimate.high, name)}]"


def _bounds(target: TargetRange, name: ScoreName) -> str:
    parts = []
    if target.at_least is not None:
        parts.append(f"at least {_number(target.at_least, name)}")
    if target.at_most is not None:
        parts.append(f"at most {_number(target.at_most, name)}")
    return ", ".join(parts)


def _score_document(score: Score, found: SetResult) -> dict[str, Any]:
    target = found.targets.get(score.name)
    return asdict(score) | {
        "target": target.model_dump() if target else None,
        "met": target.is_met(score.measured.value) if target else None,
    }

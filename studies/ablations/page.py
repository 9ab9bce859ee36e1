"""The page of the ablations, out of the scores that are there; runs without them are named."""

import json
from pathlib import Path
from typing import Any

from magicvideo.atomic_io import atomic_file
from magicvideo.evaluation.results_page import provenance_table
from studies.ablations.plots import draw_plot
from studies.ablations.results import VariantResult, collect_results
from studies.ablations.settings import Ablations, Experiment
from studies.ablations.tables import (
    MISSING,
    cost_table,
    decoder_table,
    denoiser_table,
    upscaler_table,
)

_BUDGETS = {
    "updates": "All variants have the updates that their recipe says, whatever one costs.",
    "cost": "All variants have the operations of {baseline} in all their training, so that one "
    "whose updates cost more, or that has a stage more, has fewer in its last stage.",
}
_DENOISER = (
    "*Held-out error*: the mean squared error of the prediction on {clips} clips of the {split} "
    "split, told by their captions, at the steps {timesteps} of 1000 and the same noise for all "
    "variants; lower is better. *More than*: its difference from the baseline's, clip by clip and "
    "averaged over the seeds, with an interval bootstrapped over clips. *Of it between frames*: "
    "the part of the error that differs from frame to frame. The other columns are of {prompts} "
    "videos of the same split's captions ({scheduler}, {steps} steps, guidance {guidance:g}): the "
    "share whose own caption the judge ranks first, the Frechet distance on the judge's features, "
    "and change in time of the whole picture and of its corners as multiples of the real clips'. "
    "*Same background*: among captions of the same colour behind the figure, which then tells "
    "nothing. Shares are of the videos of all seeds with Wilson's interval, a little too narrow, "
    "since all seeds have the same captions. The Frechet distance of {prompts} clips is mostly "
    "what so few of them cost, as the real clips' own row says."
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


def write_page(found: Ablations, page: Path, command: str, judge_hash: str) -> None:
    """Write the page, and a plot of every experiment that has scores by this judge beside it.

    Raises:
        UserError: If a recipe is not allowed, or matplotlib is missing.
    """
    parts = [
        "# Ablations",
        f"Written by `{command}`.",
        found.about.strip(),
        f"Every variant has {len(found.seeds)} seeds. A number is the mean over them, "
        "with the least and the greatest in brackets. Scores come from our own judge and our own "
        "clips: compare them with each other alone.",
    ]
    identities: dict[str, Any] = {}
    for name in found.experiments:
        rows = collect_results(found, name, judge_hash)
        for scores in (scores for row in rows for scores in row.scores.values()):
            identities.setdefault(json.dumps(scores["identity"]), scores["identity"])
        parts += _section(found, name, rows, page)
    if identities:
        parts += ["## What the numbers depend on", *map(provenance_table, identities.values())]
    with atomic_file(page) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _section(found: Ablations, name: str, rows: list[VariantResult], page: Path) -> list[str]:
    experiment, scoring = found.experiments[name], found.scoring
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
    parts.append(_method(found, experiment))
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


def _method(found: Ablations, experiment: Experiment) -> str:
    scoring = found.scoring
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

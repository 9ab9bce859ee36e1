"""`python -m studies interpolation`: the interpolation network against simple baselines."""

from dataclasses import dataclass
from typing import Annotated

import typer

from magicvideo.cli.evaluate.setup import (
    DEFAULT_PAGE,
    Data,
    JudgeFolder,
    Model,
    Page,
    Seed,
    load,
    prepare_section,
    progress,
    write_results,
)
from magicvideo.cli.options import with_option_groups
from studies import PROGRAM

_SECTION = "interpolation"


@dataclass(frozen=True)
class InterpolationOptions:
    """Clips, methods and measures of the comparison."""

    clips: Annotated[int, typer.Option(min=2, help="Number of clips.")] = 50
    keys: Annotated[int, typer.Option(min=2, help="Key frames per clip.")] = 16
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Diffusion steps to compare; repeatable.")
    ] = None
    generated: Annotated[
        int, typer.Option(min=0, help="Videos to generate for the pulse at key frames; 0 skips it.")
    ] = 30
    noise_level: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            max=999,
            help="Timestep of the noise on generated key frames; repeatable. [default: the "
            "model's]",
        ),
    ] = None
    seed: Seed = 0


@with_option_groups
def interpolation(
    data: Data,
    trial: InterpolationOptions,
    model: Model = None,
    judge: JudgeFolder = None,
    output: Page = DEFAULT_PAGE,
) -> None:
    """Compare the interpolation network with linear interpolation and frame repetition.

    Also measure whether generated videos pulse at the keyframe rate.

    Example:
      python -m studies interpolation --data data/emoji64 --noise-level 0 --noise-level 30
    """
    prepare_section(output, _SECTION)
    from magicvideo.atomic_io import hash_folder
    from magicvideo.evaluation.judge.network import SHIPPED, load_judge
    from magicvideo.evaluation.provenance import provenance
    from magicvideo.evaluation.results_page import provenance_table
    from studies.interpolation.evaluation import InterpolationEvaluation
    from studies.interpolation.report import section_parts

    pipeline, judge_folder = load(model), judge or SHIPPED
    default_steps = pipeline.capabilities.default("interpolation_steps")
    default_level = pipeline.config.interpolation_noise_level
    evaluation = InterpolationEvaluation(
        pipeline=pipeline,
        judge=load_judge(judge_folder),
        data=data,
        clips=trial.clips,
        keys=trial.keys,
        steps=tuple(trial.steps or [default_steps]),
        generated=trial.generated,
        noise_levels=tuple(trial.noise_level or [default_level]),
        seed=trial.seed,
    )
    with progress() as report:
        scores = evaluation.run(report)
    options = {"data": data, "model": model, "judge": judge, **vars(trial)}
    hashes = {"model": pipeline.model_hash, "judge": hash_folder(judge_folder)}
    depends = provenance_table(provenance(hashes, {"data": data}, pipeline.device.type))
    write_results(
        output, _SECTION, [], options, [*section_parts(evaluation, scores), depends], PROGRAM
    )

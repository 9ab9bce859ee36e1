"""`magicvideo evaluate interpolation`: the frames between key frames, by our network and simply."""

from dataclasses import dataclass
from typing import Annotated

import typer

from magicvideo.cli.evaluate.options import (
    DEFAULT_PAGE,
    Data,
    JudgeFolder,
    Model,
    Page,
    Seed,
)
from magicvideo.cli.evaluate.preparing import load, prepare_section, progress, write_results
from magicvideo.cli.grouped import grouped

_SECTION = "interpolation"


@dataclass(frozen=True)
class Trial:
    """What is interpolated, and in how many steps."""

    clips: Annotated[int, typer.Option(min=2, help="How many.")] = 50
    keys: Annotated[int, typer.Option(min=2, help="Key frames of each clip.")] = 16
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Diffusion steps to try; repeatable.")
    ] = None
    seed: Seed = 0


@grouped
def interpolation(
    data: Data,
    trial: Trial,
    model: Model = None,
    judge: JudgeFolder = None,
    output: Page = DEFAULT_PAGE,
) -> None:
    """Compare the interpolation network with blending and with standing still, on real clips.

    Example:
      magicvideo evaluate interpolation --data data/emoji64
    """
    prepare_section(output, _SECTION)
    from magicvideo.data.dataset import ClipDataset
    from magicvideo.evaluate.identity import identity
    from magicvideo.evaluate.interpolation.report import interpolation_about, interpolation_table
    from magicvideo.evaluate.interpolation.scores import score_interpolation
    from magicvideo.evaluate.judge.files import SHIPPED, load_judge
    from magicvideo.evaluate.page import identity_table
    from magicvideo.storage import folder_hash

    pipeline, judge_folder = load(model), judge or SHIPPED
    network = load_judge(judge_folder)
    with progress() as report:
        scores = score_interpolation(
            pipeline,
            network,
            ClipDataset(data, ("heldout",)),
            trial.clips,
            num_keys=trial.keys,
            steps=trial.steps or [pipeline.traits.default_interpolation_steps],
            seed=trial.seed,
            on_clip=lambda done: report("interpolation", done, trial.clips),
        )
    options = {"data": data, "model": model, "judge": judge, **vars(trial)}
    hashes = {"model": pipeline.model_hash, "judge": folder_hash(judge_folder)}
    parts = [
        interpolation_about(pipeline, trial.clips, trial.keys, network.config.num_frames),
        interpolation_table(scores),
        identity_table(identity(hashes, {"data": data}, pipeline.device.type)),
    ]
    write_results(output, _SECTION, [], options, parts)

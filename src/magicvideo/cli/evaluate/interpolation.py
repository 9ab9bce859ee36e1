"""`magicvideo evaluate interpolation`: the frames between key frames, by our network and simply."""

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

_SECTION = "interpolation"
_ABOUT = (
    "{clips} held-out clips of {frames} frames in a row on plain backgrounds, of which one in "
    "{apart} is a key frame; a finished video takes {steps}. PSNR and SSIM are those of the "
    "{inserted} inserted frames, the Frechet distance is on the judge's features of whole clips, "
    "from those of the same real clips. *At keys*: the mean change from a frame to the next where "
    "one of both is a key, as a multiple of the change elsewhere. All videos are read in 8 bits; "
    "intervals are bootstrapped over clips."
)


def interpolation(
    data: Data,
    model: Model = None,
    judge: JudgeFolder = None,
    output: Page = DEFAULT_PAGE,
    clips: Annotated[int, typer.Option(min=2, help="How many.")] = 50,
    keys: Annotated[int, typer.Option(min=2, help="Key frames of each clip.")] = 16,
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Diffusion steps to try; repeatable.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Compare the interpolation network with blending and with standing still, on real clips.

    Example:
      magicvideo evaluate interpolation --data data/emoji64
    """
    prepare_section(output, _SECTION)
    from magicvideo.data.dataset import ClipDataset
    from magicvideo.evaluate.identity import identity
    from magicvideo.evaluate.interpolation import interpolation_table, score_interpolation
    from magicvideo.evaluate.judge.files import SHIPPED, load_judge
    from magicvideo.evaluate.page import identity_table
    from magicvideo.storage import folder_hash

    pipeline, judge_folder = load(model), judge or SHIPPED
    default = pipeline.traits.default_interpolation_steps
    tried = steps or [default]
    with progress() as report:
        scores = score_interpolation(
            pipeline,
            load_judge(judge_folder),
            ClipDataset(data, ("heldout",)),
            clips,
            num_keys=keys,
            steps=tried,
            seed=seed,
            on_clip=lambda done: report("interpolation", done, clips),
        )
    options = {
        "data": data,
        "model": model,
        "judge": judge,
        "clips": clips,
        "keys": keys,
        "steps": steps,
        "seed": seed,
    }
    inserted = pipeline.traits.num_inserted
    about = _ABOUT.format(
        clips=clips,
        frames=keys + (keys - 1) * inserted,
        apart=inserted + 1,
        steps=f"{default} step{'s' if default > 1 else ''}",
        inserted=(keys - 1) * inserted,
    )
    hashes = {"model": pipeline.model_hash, "judge": folder_hash(judge_folder)}
    parts = [
        about,
        interpolation_table(scores),
        identity_table(identity(hashes, {"data": data}, pipeline.device.type)),
    ]
    write_results(output, _SECTION, [], options, parts)

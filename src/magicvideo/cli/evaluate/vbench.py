"""`magicvideo evaluate vbench`: videos under the names that VBench reads."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import Model, check_writable_folder, load, progress


def vbench(
    prompts: Annotated[Path, typer.Argument(help="A text file, one prompt a line.")],
    output: Annotated[Path, typer.Argument(help="The folder of the videos; what is there stays.")],
    model: Model = None,
    per_prompt: Annotated[int, typer.Option(min=1, help="Videos of each prompt.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the first; the others count on.")] = 0,
) -> None:
    """Generate videos for VBench: OUTPUT/PROMPT-0.mp4 and so on, five per prompt.

    VBench itself runs in an environment of its own. Under torchrun, each process generates a part
    of the videos. The same command continues after a stop. An existing file of that name from
    another model or seed is refused.

    Example:
      magicvideo evaluate vbench all_dimension.txt runs/vbench --model models/mine
    """
    from magicvideo.data.text_files import read_prompts
    from magicvideo.data.workers import Rank
    from magicvideo.evaluation.benchmark.vbench import export, plan_export

    wanted = plan_export(read_prompts(prompts), per_prompt, seed)
    check_writable_folder(output)
    rank = Rank.from_env()
    own = wanted[rank.rank :: rank.world_size]
    pipeline = load(model)
    with progress() as report:
        export(pipeline, own, output, lambda done: report("videos", done, len(own)))
    say(output)

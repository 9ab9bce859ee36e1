"""`magicvideo evaluate sheet`: a contact sheet of generated videos."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import DEFAULT_WORK, Model, Work, check_target, load, progress


def sheet(
    prompts: Annotated[
        Path | None, typer.Option(help="A text file, one prompt a line; by default 24 of ours.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The PNG, replaced.")] = Path("docs/sheet.png"),
    model: Model = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first; the others count on.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Diffusion steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim or dpm++.")] = None,
    shown: Annotated[int, typer.Option(min=1, help="Frames shown of each video.")] = 8,
    work: Work = DEFAULT_WORK,
) -> None:
    """Make a contact sheet: a row a prompt, with its words and some frames.

    Example:
      magicvideo evaluate sheet --prompts prompts.txt --output docs/sheet.png
    """
    check_target(output)
    from magicvideo.atomic_io import lock_output
    from magicvideo.data.text_files import read_prompts
    from magicvideo.evaluation.sheet import DEFAULT_PROMPTS, write_sheet
    from magicvideo.evaluation.video_cache import generate_cached
    from magicvideo.pipelines.request import GenerationSettings

    texts = read_prompts(prompts or DEFAULT_PROMPTS)
    settings = GenerationSettings(
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        stages=("keyframes",),
    )
    with lock_output(output.absolute()), progress() as report:
        pipeline = load(model)
        requests = pipeline.build_requests(
            texts, [seed + place for place in range(len(texts))], settings
        )
        videos = generate_cached(
            pipeline, requests, work, lambda done: report("sheet", done, len(requests))
        )
        write_sheet(zip(texts, videos, strict=True), shown, output)
    say(output)

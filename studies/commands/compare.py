"""`python -m studies compare` and `compare-report`: a blind human study, and its results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import check_target, command_line, load, progress, require
from magicvideo.errors import UserError
from studies import PROGRAM

if TYPE_CHECKING:
    from magicvideo.pipelines.request import GenerationSettings
    from studies.human_study.study import Study

_Place = Annotated[
    Path | None, typer.Argument(help="A model folder, a folder of finished videos, or `bundled`.")
]
_BUNDLED = Path("bundled")


def compare(
    a: _Place = None,
    b: _Place = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file with one prompt per line.")
    ] = None,
    study: Annotated[
        Path, typer.Option(help="Folder of the study, with its videos and votes.")
    ] = Path("runs/compare"),
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first video; the next ones follow.")
    ] = 0,
    steps: Annotated[int | None, typer.Option(help="Diffusion steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim or dpm++.")] = None,
    stages: Annotated[
        str | None, typer.Option(help="Comma-separated stages, as for `generate`; by default all.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve the page on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0 selects a free one.")
    ] = 8000,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Only generate the videos.")
    ] = False,
) -> None:
    """Run a blind pairwise study of two models on a local web page.

    Without A and B, the existing study is served again.

    Examples:
      python -m studies compare models/old models/new --prompts prompts.txt
      python -m studies compare --study runs/compare
    """
    require(("fastapi", "uvicorn", "jinja2"), "studio", "A study")
    from magicvideo.pipelines.request import GenerationSettings
    from studies.human_study.study import read_study

    settings = GenerationSettings(
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        stages=None if stages is None else tuple(name.strip() for name in stages.split(",")),
    )
    if a is not None and b is not None and prompts is not None:
        opened = _prepare(study, a, b, prompts, seed, settings)
    elif (a, b, prompts, prepare_only, seed, settings) == (
        None,
        None,
        None,
        False,
        0,
        GenerationSettings(),
    ):
        opened = read_study(study)
    else:
        raise UserError(
            "A study needs A, B and --prompts; to serve the existing study in --study, omit all of "
            "them and the settings."
        )
    if prepare_only:
        say(study)
    else:
        _serve(opened, study, host, port)


def compare_report(
    study: Annotated[Path, typer.Argument(help="Folder of the study.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The Markdown page; by default results.md in the study's folder."),
    ] = None,
) -> None:
    """Count the votes of a study, and print and write a table of win rates and agreement.

    Example:
      python -m studies compare-report runs/compare
    """
    require(("scipy",), "report", "A report")
    from magicvideo.evaluation.results_page import write_section
    from magicvideo.media.outputs import slugify
    from studies.human_study.results import Votes, as_markdown
    from studies.human_study.study import read_study

    page = output or study / "results.md"
    opened = read_study(study)
    check_target(page)
    votes = Votes(study).all()
    if not votes:
        raise UserError(
            f"{study} has no votes yet; serve it with `python -m studies compare --study {study}`."
        )
    name = slugify(study.resolve().name)
    text = as_markdown(
        opened, votes, command_line(["compare-report", study], {"output": output}, PROGRAM)
    )
    write_section(page, f"study {name}", text)
    say(text)
    say(page)


def _prepare(
    folder: Path, a: Path, b: Path, prompts: Path, seed: int, settings: "GenerationSettings"
) -> "Study":
    """Create or continue a study until all its videos exist."""
    from magicvideo.data.text_files import read_prompts
    from magicvideo.pipelines.model_folder import BUNDLED_MODEL_DIR
    from magicvideo.pipelines.request import GenerationSettings
    from studies.human_study.study import (
        SIDES,
        describe_source,
        generate_videos,
        missing_pairs,
        open_study,
        read_videos,
        write_videos,
    )

    texts = read_prompts(prompts)
    places = [BUNDLED_MODEL_DIR if place == _BUNDLED else place for place in (a, b)]
    first, second = (describe_source(place, texts) for place in places)
    if "model" not in (first.kind, second.kind) and (seed, settings) != (0, GenerationSettings()):
        raise UserError("Both sides are finished videos, so a seed or settings have no effect.")
    study = open_study(folder, first, second, texts, seed, settings)
    for side, place in zip(SIDES, places, strict=True):
        if not (pairs := missing_pairs(study, folder, side)):
            continue
        if study.arm(side).kind == "model":
            clips = generate_videos(study, load(place), pairs)
        else:
            clips = read_videos(study, place, pairs)
        with progress() as report:
            for done in write_videos(study, folder, side, pairs, clips):
                report(f"videos of {place.name}", done, len(pairs))
    return study


def _serve(study: "Study", folder: Path, host: str, port: int) -> None:
    """Serve a study until Ctrl-C."""
    from magicvideo.studio.config import LOOPBACK_HOSTS
    from studies.human_study.server import serve_study

    server = serve_study(study, folder, host, port)
    say(f"The study is at {server.address}; stop with Ctrl-C, votes are kept.")
    if host not in LOOPBACK_HOSTS:
        say("Hint: everybody who can reach this address can vote, without encryption.", err=True)
    server.run()
    say(f"Count the votes: python -m studies compare-report {folder}")

"""`python -m studies compare` and `compare-report`: a blind study by people, and what it says."""

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
    prompts: Annotated[Path | None, typer.Option(help="A text file, one prompt a line.")] = None,
    study: Annotated[
        Path, typer.Option(help="Folder of the study: its videos and its votes.")
    ] = Path("runs/compare"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first; the others count on.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Diffusion steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim or dpm++.")] = None,
    stages: Annotated[
        str | None, typer.Option(help="Comma-separated, as for `generate`; by default all.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve the page on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")
    ] = 8000,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Make the videos and serve no page.")
    ] = False,
) -> None:
    """Run a blind pairwise study of two models on a local web page.

    Without A and B the study that is there is served again.

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
            "A study needs A, B and --prompts; leave all of them and the settings out to serve "
            "the study that is in --study."
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
    """Count the votes of a study: win rates, intervals, agreement. Prints and writes a table.

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
            f"{study} holds no vote yet; serve it with `python -m studies compare --study "
            f"{study}` and let people answer."
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
        finished_clips,
        generated_clips,
        missing_pairs,
        open_study,
        write_clips,
    )

    texts = read_prompts(prompts)
    places = [BUNDLED_MODEL_DIR if place == _BUNDLED else place for place in (a, b)]
    first, second = (describe_source(place, texts) for place in places)
    if "model" not in (first.kind, second.kind) and (seed, settings) != (0, GenerationSettings()):
        raise UserError("Both sides are finished videos, which no seed and no setting changes.")
    study = open_study(folder, first, second, texts, seed, settings)
    for side, place in zip(SIDES, places, strict=True):
        if not (pairs := missing_pairs(study, folder, side)):
            continue
        if study.arm(side).kind == "model":
            clips = generated_clips(study, load(place), pairs)
        else:
            clips = finished_clips(study, place, pairs)
        with progress() as report:
            for done in write_clips(study, folder, side, pairs, clips):
                report(f"videos of {place.name}", done, len(pairs))
    return study


def _serve(study: "Study", folder: Path, host: str, port: int) -> None:
    """Serve a study until Ctrl-C, which is how a study is meant to end."""
    from magicvideo.studio.config import LOOPBACK_HOSTS
    from studies.human_study.server import serve_study

    server = serve_study(study, folder, host, port)
    say(f"{server.address} shows the study; Ctrl-C ends it, and votes are kept.")
    if host not in LOOPBACK_HOSTS:
        say("Hint: everybody who reaches this machine can vote, unencrypted.", err=True)
    server.run()
    say(f"Count the votes: python -m studies compare-report {folder}")

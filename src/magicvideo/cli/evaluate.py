"""`magicvideo evaluate`: scores with their protocol, the judge behind them, and contact sheets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from magicvideo.cli.cost import cost
from magicvideo.errors import UserError

if TYPE_CHECKING:
    from magicvideo.generate.pipeline import MagicVideoPipeline

_PROTOCOL_VERB = "run"
_HELP = """Score a model by a protocol: `magicvideo evaluate PROTOCOL --data FOLDER`.

A protocol is `emoji-heldout`, which comes with the package, or a YAML file like it.

Examples:
  magicvideo evaluate emoji-heldout --data data/emoji64
  magicvideo evaluate sheet --output docs/sheet.png
  magicvideo evaluate judge data/emoji64 runs/judge
  magicvideo evaluate decoders vae video_vae --data data/emoji64
"""

Model = Annotated[
    Path | None, typer.Option(help="A model folder; by default the model that is shipped.")
]
Work = Annotated[
    Path, typer.Option(help="Where generated videos are kept, so that a stopped run goes on.")
]
_DEFAULT_WORK = Path("runs/evaluate")


class _ProtocolFirst(TyperGroup):
    """Reads `evaluate PROTOCOL ...` as `evaluate run PROTOCOL ...`."""

    # typer's own class of contexts has no public name
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Name the verb where the first word is none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_PROTOCOL_VERB, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verbs = typer.Typer(cls=_ProtocolFirst, help=_HELP, no_args_is_help=True)
    verbs.command(_PROTOCOL_VERB)(run)
    verbs.command("judge")(judge)
    verbs.command("sheet")(sheet)
    verbs.command("decoders")(decoders)
    verbs.command("interpolation")(interpolation)
    verbs.command("cost")(cost)
    app.add_typer(verbs, name="evaluate")


def run(
    protocol: Annotated[str, typer.Argument(help="emoji-heldout, or a YAML file.")],
    data: Annotated[Path, typer.Option(help="Folder of prepared clips.")],
    model: Model = None,
    judge: Annotated[
        Path | None, typer.Option(help="A judge's folder; by default the one that is shipped.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The Markdown page, replaced.")] = Path(
        "docs/results.md"
    ),
    json: Annotated[
        Path | None, typer.Option("--json", help="All numbers and the whole protocol, replaced.")
    ] = None,
    work: Work = _DEFAULT_WORK,
) -> None:
    """Generate what a protocol asks for, score it, and write the results.

    Example:
      magicvideo evaluate emoji-heldout --data data/emoji64 --json results.json
    """
    _require_scipy()
    for target in filter(None, (output, json)):
        _check_target(target)
    from magicvideo.evaluate.judge.files import SHIPPED, load_judge
    from magicvideo.evaluate.protocol import read_protocol
    from magicvideo.evaluate.report import as_json, as_markdown
    from magicvideo.evaluate.run import Evaluation, evaluate
    from magicvideo.storage import atomic_file

    settings = read_protocol(protocol)
    judge_folder = judge or SHIPPED
    evaluation = Evaluation(
        protocol=settings,
        pipeline=_load(model),
        judge=load_judge(judge_folder),
        data=data,
        work=work,
    )
    with _progress() as report:
        result = evaluate(evaluation, judge_folder, report)
    texts = {output: as_markdown(result)} | ({json: as_json(result)} if json else {})
    for path, text in texts.items():
        with atomic_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
        typer.echo(path)


def judge(
    data: Annotated[Path, typer.Argument(help="Folder of prepared clips; all splits are used.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the judge.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Clips a step.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The judge's own seed.")] = None,
) -> None:
    """Train an independent judge: a matcher of videos and captions. Never train a model with it.

    It learns from all clips, held-out ones included. A stopped run goes on with the same command
    from its state of the last minute, which lies beside OUT until the judge is done.

    Example:
      magicvideo evaluate judge data/emoji64 runs/judge
    """
    _require_scipy()
    if out.exists():
        raise UserError(f"{out} exists; choose a new folder for the judge.")
    _check_target(out)
    import shutil

    from magicvideo.data.dataset import ClipDataset
    from magicvideo.evaluate.judge.check import check_judge, scores_as_json
    from magicvideo.evaluate.judge.files import load_judge, save_judge
    from magicvideo.evaluate.judge.training import JudgeTraining, train_judge

    chosen = {"steps": steps, "batch_size": batch_size, "seed": seed}
    settings = JudgeTraining.model_validate(
        {name: value for name, value in chosen.items() if value is not None}
    )
    dataset = ClipDataset(data, ("train", "heldout"))
    state = out.with_name(f"{out.name}-training")
    report = _judge_report(settings.steps)
    trained = train_judge(dataset, settings, state, report)
    scores = check_judge(trained, data)
    save_judge(trained, scores_as_json(scores), out)
    shutil.rmtree(state, ignore_errors=True)
    load_judge(out)
    for split, found in scores.items():
        for name, score in found.items():
            typer.echo(f"real clips, {split}: {name} {100 * score.value:.1f} % (n={score.count})")
    typer.echo(out)


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
    work: Work = _DEFAULT_WORK,
) -> None:
    """Make a contact sheet: a row a prompt, with its words and some frames.

    Example:
      magicvideo evaluate sheet --prompts prompts.txt --output docs/sheet.png
    """
    _check_target(output)
    from magicvideo.evaluate.generated import generated_videos
    from magicvideo.evaluate.sheet import DEFAULT_PROMPTS, read_prompts, write_sheet
    from magicvideo.generate.request import Settings

    texts = read_prompts(prompts or DEFAULT_PROMPTS)
    settings = Settings(
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        stages=("keyframes",),
    )
    pipeline = _load(model)
    requests = pipeline.plan(texts, [seed + place for place in range(len(texts))], settings)
    with _progress() as report:
        videos = generated_videos(
            pipeline, requests, work, lambda done: report("sheet", done, len(requests))
        )
        write_sheet(zip(texts, videos, strict=True), shown, output)
    typer.echo(output)


def decoders(
    first: Annotated[Path, typer.Argument(help="Folder of the autoencoder that encodes.")],
    second: Annotated[Path, typer.Argument(help="Folder of another with the same encoder.")],
    data: Annotated[Path, typer.Option(help="Folder of prepared clips; the held-out are used.")],
    clips: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
    frames: Annotated[int, typer.Option(min=2, help="Of each clip.")] = 16,
    stride: Annotated[int, typer.Option(min=1, help="Between frames.")] = 1,
    noise: Annotated[
        float, typer.Option(min=0, help="Deviation of noise on the latents, which have 1.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of clips, backgrounds and noise.")] = 0,
) -> None:
    """Compare two decoders on the same latents: flicker where nothing moves, and nearness.

    Example:
      magicvideo evaluate decoders autoencoder/product/vae video_vae/product/vae --data data/emoji64
    """
    _require_scipy()
    from magicvideo.data.dataset import ClipDataset
    from magicvideo.evaluate.decoders import compare_decoders, load_autoencoder

    found = compare_decoders(
        load_autoencoder(first),
        load_autoencoder(second),
        ClipDataset(data, ("heldout",)),
        clips,
        num_frames=frames,
        stride=stride,
        noise=noise,
        seed=seed,
    )
    for row in found:
        typer.echo(
            f"{row.name}: {row.first:.5f} and {row.second:.5f}, "
            f"times {row.ratio.value:.3f} [{row.ratio.low:.3f}, {row.ratio.high:.3f}], "
            f"n={row.ratio.count}"
        )


def interpolation(
    data: Annotated[Path, typer.Option(help="Folder of prepared clips; the held-out are used.")],
    model: Model = None,
    output: Annotated[Path, typer.Option(help="The Markdown page, replaced.")] = Path(
        "docs/interpolation.md"
    ),
    clips: Annotated[int, typer.Option(min=2, help="How many.")] = 64,
    keys: Annotated[int, typer.Option(min=2, help="Key frames of each clip.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of clips and noise.")] = 0,
) -> None:
    """Compare the interpolation network with blending and with standing still, on real clips.

    Example:
      magicvideo evaluate interpolation --data data/emoji64
    """
    _require_scipy()
    _check_target(output)
    from magicvideo.data.dataset import ClipDataset
    from magicvideo.evaluate.interpolation import interpolation_markdown, score_interpolation
    from magicvideo.evaluate.judge.files import SHIPPED, load_judge
    from magicvideo.storage import atomic_file

    pipeline = _load(model)
    with _progress() as report:
        scores = score_interpolation(
            pipeline,
            load_judge(SHIPPED),
            ClipDataset(data, ("heldout",)),
            clips,
            num_keys=keys,
            seed=seed,
            on_clip=lambda done: report("interpolation", done, clips),
        )
    about = (
        f"# Interpolation\n\n`magicvideo evaluate interpolation --clips {clips} --keys {keys} "
        f"--seed {seed}`, model `{pipeline.model_hash}`: {clips} held-out clips on plain "
        "backgrounds. Scores are of the inserted frames alone, against the real ones; the Frechet "
        "distance is on the emoji judge's features of whole clips."
    )
    with atomic_file(output) as partial:
        partial.write_text(interpolation_markdown(scores, about), encoding="utf-8")
    typer.echo(output)


def _require_scipy() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("scipy", "torchmetrics") if find_spec(name) is None]:
        raise UserError(
            f"Scores need {missing[0]}; install it with `pip install 'magicvideo[evaluate]'`."
        )


def _check_target(path: Path) -> None:
    """Refuse a place that cannot be written before hours are spent on what belongs there."""
    import os

    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; make it first, or choose another place.")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be written; choose another place.")


def _load(model: Path | None) -> "MagicVideoPipeline":
    import torch

    from magicvideo.generate.pipeline import MagicVideoPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return MagicVideoPipeline.from_pretrained(model).to(device)


def _judge_report(steps: int) -> Callable[[int, dict[str, float]], None]:
    """Return a reporter that prints the losses of every hundredth step and the time left."""
    import time

    began: list[tuple[int, float]] = []

    def report(step: int, losses: dict[str, float]) -> None:
        now = time.monotonic()
        began.append((step, now)) if not began else None
        if step % 100 and step != steps:
            return
        first, start = began[0]
        left = (now - start) / max(1, step - first) * (steps - step)
        values = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        typer.echo(f"step {step}/{steps}, {values}, {left / 60:.0f} minutes left", err=True)

    return report


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("generating", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield report

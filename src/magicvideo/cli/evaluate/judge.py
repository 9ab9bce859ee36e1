"""`magicvideo evaluate judge`: the independent matcher of videos and captions."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import check_target, require_scipy
from magicvideo.errors import UserError


def judge(
    data: Annotated[Path, typer.Argument(help="Folder of prepared clips; all splits are used.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the judge.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Clips a step.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The judge's own seed.")] = None,
) -> None:
    """Train an independent judge: a matcher of videos and captions. Never train a model with it.

    It learns from all clips, held-out ones included. A stopped run continues with the same command
    from its state of the last two minutes, which lies next to OUT until the judge is done.

    Example:
      magicvideo evaluate judge data/emoji64 runs/judge
    """
    require_scipy()
    if out.exists():
        raise UserError(f"{out} exists; choose a new folder for the judge.")
    check_target(out)
    import shutil

    from magicvideo.atomic_io import lock_output
    from magicvideo.data.dataset import ClipDataset
    from magicvideo.evaluation.judge.network import load_judge, save_judge
    from magicvideo.evaluation.judge.training import (
        JudgeTraining,
        check_judge,
        scores_as_json,
        train_judge,
    )

    chosen = {"steps": steps, "batch_size": batch_size, "seed": seed}
    settings = JudgeTraining.model_validate(
        {name: value for name, value in chosen.items() if value is not None}
    )
    dataset = ClipDataset(data, ("train", "validation", "heldout"), captioned=True)
    state = out.with_name(f"{out.name}-training")
    report = _report(settings.steps)
    with lock_output(out.absolute()):
        trained = train_judge(dataset, settings, state, report)
        scores = check_judge(trained, data)
        save_judge(trained, scores_as_json(scores), out)
        shutil.rmtree(state, ignore_errors=True)
    load_judge(out)
    for name, score in scores.items():
        say(f"real clips: {name} {100 * score.value:.1f} % (n={score.count})")
    say(out)


def _report(steps: int) -> Callable[[int, dict[str, float]], None]:
    """Return a reporter that prints the losses of every hundredth step and the time left."""
    began: list[tuple[int, float]] = []

    def report(step: int, losses: dict[str, float]) -> None:
        now = time.monotonic()
        began.append((step, now)) if not began else None
        if step % 100 and step != steps:
            return
        first, start = began[0]
        left = (now - start) / max(1, step - first) * (steps - step)
        values = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        say(f"step {step}/{steps}, {values}, {left / 60:.0f} minutes left", err=True)

    return report

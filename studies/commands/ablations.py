"""`python -m studies ablations`: train and score the paper's ablations and write a page."""

from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.evaluate.setup import (
    JudgeFolder,
    check_target,
    command_line,
    progress,
    require_scipy,
)
from studies import PROGRAM


def ablations(
    file: Annotated[Path, typer.Argument(help="Settings, such as recipes/ablations.yaml.")],
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this experiment; repeatable.")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="K/N: every Nth run from the Kth on, for several processes.")
    ] = "1/1",
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Only write the page from existing scores.")
    ] = False,
    output: Annotated[
        Path, typer.Option(help="The page, which is replaced, with its plots.")
    ] = Path("docs/ablations.md"),
    judge: JudgeFolder = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; the same number gives the same results.")
    ] = None,
) -> None:
    """Train and score every variant and seed of a file, and write the page. This takes hours.

    The same command continues after an interruption and skips finished runs. Several processes can
    work at the same time, with --shard or without it.

    Examples:
      python -m studies ablations recipes/ablations.yaml
      python -m studies ablations recipes/ablations.yaml --shard 1/2 --threads 1
      python -m studies ablations recipes/ablations.yaml --only attention
      python -m studies ablations recipes/ablations.yaml --table-only
    """
    require_scipy()
    check_target(output)
    import torch

    from magicvideo.evaluation.judge.network import SHIPPED
    from magicvideo.training.trainer import Interrupted
    from studies.ablations.experiment_runs import expand_runs, select_shard
    from studies.ablations.plots import require_matplotlib
    from studies.ablations.runner import AblationRunner
    from studies.ablations.settings import read_ablations

    require_matplotlib()
    if threads is not None:
        torch.set_num_threads(threads)
    found = read_ablations(file)
    runs = select_shard(expand_runs(found, tuple(only or ())), shard)
    command = command_line(["ablations", file], {}, PROGRAM)
    work = AblationRunner(ablations=found, judge=judge or SHIPPED, page=output, command=command)
    if not table_only:
        with progress() as report:
            try:
                work.run(runs, lambda line: say(line, err=True), report)
            except Interrupted as stopped:
                say(f"{stopped}; run the same command to continue.", err=True)
                raise typer.Exit(stopped.exit_code) from None
    work.write()
    say(output)

"""`magicvideo data encode`: clips to shards of latents, embeddings and tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from magicvideo.cli.console import make_console, progress_bar

if TYPE_CHECKING:
    from magicvideo.encode.originals import Originals
    from magicvideo.encode.run import Report, Runner
    from magicvideo.models.frozen import FrozenFolders

Variants = Annotated[
    int | None,
    typer.Option(help="Backgrounds and captions of each clip that can have several; 4 by default."),
]
ClipsPerShard = Annotated[int | None, typer.Option(help="Clips of one tar file; 256 by default.")]
Device = Annotated[
    Literal["cpu", "cuda"] | None,
    typer.Option(help="Where the networks work; cpu by default.", show_default=False),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads of one shard's work; 1 by default.")]
OnRay = Annotated[
    bool, typer.Option("--ray", help="Make the shards on the Ray cluster that is there.")
]


@dataclass(frozen=True)
class Encoding:
    """How clips are encoded, by the options of a command; None is what was not given."""

    variants: int | None
    clips_per_shard: int | None
    device: Literal["cpu", "cuda"] | None
    threads: int | None
    ray: bool

    def given(self) -> list[str]:
        """Return the names of the options that were given."""
        values = vars(self).items()
        given = [name for name, value in values if value is not None and value is not False]
        return [f"--{name.replace('_', '-')}" for name in given]


def encode(
    source: Annotated[
        Path, typer.Argument(help="A prepared folder, or a source, decoded on the way.")
    ],
    out: Annotated[Path, typer.Argument(help="A new folder, or one begun by this command.")],
    model: Annotated[
        Path,
        typer.Option(help="A model, or a run that has trained its autoencoder and CLIP."),
    ],
    variants: Variants = None,
    clips_per_shard: ClipsPerShard = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the frames of a source in pixels; 64 by default.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(help="Keep one frame in so many of a source; all by default.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--source", help="How the clips lie, as for `magicvideo data prepare`."),
    ] = None,
    longest_scene: Annotated[
        bool,
        typer.Option("--longest-scene", help="Of each clip, take the longest part without a cut."),
    ] = False,
    holdout: Annotated[
        float | None, typer.Option(help="Share of a folder of videos that training does not see.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    workers: Annotated[int, typer.Option(help="Shards that are made at a time.")] = 1,
    ray: OnRay = False,
) -> None:
    """Encode clips once into shards that training streams. The same command goes on if it stopped.

    Under torchrun or accelerate launch every process makes its share of the shards. Their bytes do
    not depend on how many processes there are.

    Examples:
      magicvideo data encode data/emoji64 data/emoji-shards --model runs/emoji
      torchrun --nproc-per-node 8 -m magicvideo data encode CLIPS SHARDS --model MODEL \
        --size 256 --device cuda
      magicvideo data encode CLIPS SHARDS --model MODEL --size 256 --device cuda --ray
    """
    encode_into(
        out,
        lambda: _open_originals(
            source, size, every, holdout, kind=kind, longest_scene=longest_scene
        ),
        model,
        Encoding(variants, clips_per_shard, device, threads, ray),
        workers,
    )


def encode_into(
    out: Path,
    open_originals: Callable[[], "Originals"],
    model: Path,
    encoding: Encoding,
    workers: int,
) -> None:
    """Make the shards that belong to this process, and say what became of them.

    Args:
        out: A new folder, or one begun by the same command.
        open_originals: Finds the clips, once the rest is known to fit.
        model: A model folder, or a run.
        encoding: How.
        workers: Shards that are made at a time.

    Raises:
        UserError: If something does not fit, or no clip can be used.
    """
    import os
    from functools import partial

    from magicvideo.encode.ranks import read_rank
    from magicvideo.encode.run import encode as encode_originals
    from magicvideo.errors import UserError

    rank = read_rank(os.environ)
    if encoding.ray and rank.world > 1:
        raise UserError("--ray spreads the work itself; run it as one process, without torchrun.")
    originals = open_originals()
    device, threads = encoding.device or "cpu", _or(encoding.threads, 1)
    run_jobs = _runner(workers, threads, device, ray=encoding.ray)
    with progress_bar(make_console(), "") as advance:
        report = encode_originals(
            originals,
            _open_folders(model),
            out,
            run_jobs,
            variants=_or(encoding.variants, 4),
            clips_per_shard=_or(encoding.clips_per_shard, 256),
            threads=threads,
            device=device,
            rank=rank,
            on_shard=partial(advance, "encoding"),
        )
    of_this = f" by process {rank.number} of {rank.world}" if rank.world > 1 else ""
    _print_report(report, out, of_this)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _print_report(report: "Report", out: Path, of_this: str) -> None:
    typer.echo(f"{out}: {report.made:,} shards made{of_this}, {report.kept:,} from before.")
    if report.missing:
        typer.echo(f"{report.missing:,} shards of other processes are to come, then the index.")
        return
    for skipped in report.skipped:
        typer.echo(f"skipped {skipped.file}: {skipped.reason}", err=True)
    typer.echo(f"{out}: complete, {report.clips:,} clips, {len(report.skipped):,} files skipped.")


def _open_originals(
    source: Path,
    size: int | None,
    every: int | None,
    holdout: float | None,
    *,
    kind: str | None,
    longest_scene: bool,
) -> "Originals":
    from magicvideo.data.doctor import is_prepared
    from magicvideo.encode.originals import prepared_originals
    from magicvideo.errors import UserError

    if not is_prepared(source):
        return open_undecoded(
            source, size or 64, every or 1, holdout or 0.0, kind=kind, longest_scene=longest_scene
        )
    given = {"size": size, "every": every, "holdout": holdout, "source": kind}
    given["longest-scene"] = longest_scene or None
    for option, value in given.items():
        if value is not None:
            raise UserError(
                f"{source} is prepared already, so --{option} {value} can change nothing; leave it "
                "out, or encode the source itself."
            )
    return prepared_originals(source)


def open_undecoded(
    source: Path, size: int, every: int, holdout: float, *, kind: str | None, longest_scene: bool
) -> "Originals":
    """Return the clips of a source, which are decoded when they are encoded.

    Raises:
        UserError: If a setting does not fit, or the folder is no source.
    """
    from magicvideo.data.doctor import is_prepared
    from magicvideo.data.prepare import check_settings
    from magicvideo.data.sources.known import open_source
    from magicvideo.encode.originals import source_originals
    from magicvideo.errors import UserError

    if is_prepared(source):
        raise UserError(f"{source} is prepared already; make shards by `magicvideo data encode`.")
    check_settings(size, every)
    opened = open_source(source, holdout, kind=kind, longest_scene=longest_scene)
    return source_originals(opened, size, every)


def _open_folders(model: Path) -> "FrozenFolders":
    from magicvideo.models.frozen import frozen_folders
    from magicvideo.train.export import recipe_of
    from magicvideo.train.parts import frozen_parts
    from magicvideo.train.run import SETTINGS

    is_run = (model / SETTINGS).is_file()
    return frozen_parts(recipe_of(model)) if is_run else frozen_folders(model)


def _runner(workers: int, threads: int, device: str, *, ray: bool) -> "Runner":
    from functools import partial

    from magicvideo.data.workers import run_each
    from magicvideo.encode.on_ray import run_on_ray

    _check_device(device, ray=ray)
    if ray:
        return partial(run_on_ray, cpus=threads, gpus=1 if device == "cuda" else 0)
    return partial(run_each, workers=workers)


def _check_device(device: str, *, ray: bool) -> None:
    import torch

    from magicvideo.errors import UserError

    # the machine that asks a cluster need not have what the cluster has
    if device == "cuda" and not ray and not torch.cuda.is_available():
        raise UserError("There is no device 'cuda' here; leave --device out.")

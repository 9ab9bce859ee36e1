"""`magicvideo data encode`: clips to shards of latents, embeddings and tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from magicvideo.cli.console import make_console, progress_bar
from magicvideo.cli.option_groups import with_option_groups

if TYPE_CHECKING:
    from magicvideo.data.shards.encode import Report, Runner
    from magicvideo.data.shards.inputs import Originals
    from magicvideo.data.sources.source import Source
    from magicvideo.models.pretrained_encoders import FrozenEncoderPaths

Kind = Annotated[
    str | None,
    typer.Option(
        "--source",
        help="How a source's clips lie: webvid, msr-vtt, ucf101, clip-list, videofolder, folder "
        "or fluent-emoji. It is found out if not given.",
        show_default=False,
    ),
]
LongestScene = Annotated[
    bool,
    typer.Option(
        "--longest-scene", help="Of each clip of a source, take the longest part without a cut."
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(
        help="Share of a folder's clips that training does not see, by a stable hash; none by "
        "default."
    ),
]


@dataclass(frozen=True)
class Decoding:
    """How the clips of a source are found and decoded; None is what was not given."""

    size: Annotated[
        int | None,
        typer.Option(help="Side of a source's square frames, a multiple of 8; 64 by default."),
    ] = None
    frame_step: Annotated[
        int | None, typer.Option(help="Keep one frame in so many of a source; all by default.")
    ] = None
    holdout: Holdout = None
    kind: Kind = None
    longest_scene: LongestScene = False

    def open_source(self, folder: Path) -> "Source":
        """Return the clips of a source.

        Raises:
            UserError: If the folder is none, or something in it does not fit.
        """
        from magicvideo.data.sources.registry import open_source

        return open_source(
            folder, self.holdout or 0.0, kind=self.kind, longest_scene=self.longest_scene
        )

    def open_undecoded(self, folder: Path) -> "Originals":
        """Return the clips of a source, which are decoded when they are encoded.

        Raises:
            UserError: If a setting does not fit, or the folder is no source.
        """
        from magicvideo.data.prepare import check_settings
        from magicvideo.data.shards.inputs import source_originals

        size, every = self.chosen_size, self.chosen_frame_step
        check_settings(size, every)
        return source_originals(self.open_source(folder), size, every)

    @property
    def chosen_size(self) -> int:
        """Return the side of the frames, in pixels."""
        return _or(self.size, 64)

    @property
    def chosen_frame_step(self) -> int:
        """Return of how many frames one is kept."""
        return _or(self.frame_step, 1)


@dataclass(frozen=True)
class Encoding:
    """How clips are encoded, by the options of a command; None is what was not given."""

    variants: Annotated[
        int | None,
        typer.Option(
            help="Backgrounds and captions of each clip that can have several; 4 by default."
        ),
    ] = None
    clips_per_shard: Annotated[
        int | None, typer.Option(help="Clips of one tar file; 256 by default.")
    ] = None
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Where the networks work; cpu by default.", show_default=False),
    ] = None
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of one shard's work; 1 by default.")
    ] = None
    ray: Annotated[
        bool, typer.Option("--ray", help="Make the shards on the Ray cluster that is there.")
    ] = False


def given(options: Decoding | Encoding) -> dict[str, object]:
    """Return the options that were given, by the names that they have at the command line."""
    named = {"kind": "source"}
    return {
        f"--{named.get(name, name).replace('_', '-')}": value
        for name, value in vars(options).items()
        if value is not None and value is not False
    }


@with_option_groups
def encode(
    source: Annotated[
        Path, typer.Argument(help="A prepared folder, or a source, decoded on the way.")
    ],
    out: Annotated[Path, typer.Argument(help="A new folder, or one begun by this command.")],
    model: Annotated[
        Path,
        typer.Option(help="A model, or a run that has trained its autoencoder and CLIP."),
    ],
    decoding: Decoding,
    encoding: Encoding,
    workers: Annotated[int, typer.Option(help="Shards that are made at a time.")] = 1,
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
    encode_into(out, lambda: _open_originals(source, decoding), model, encoding, workers)


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

    from magicvideo.data.shards.encode import encode as encode_originals
    from magicvideo.data.shards.ranks import read_rank
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


def _open_originals(source: Path, decoding: Decoding) -> "Originals":
    from magicvideo.data.doctor import is_prepared
    from magicvideo.data.shards.inputs import prepared_originals
    from magicvideo.errors import UserError

    if not is_prepared(source):
        return decoding.open_undecoded(source)
    for option, value in given(decoding).items():
        raise UserError(
            f"{source} is prepared already, so {option} {value} can change nothing; leave it "
            "out, or encode the source itself."
        )
    return prepared_originals(source)


def _open_folders(model: Path) -> "FrozenEncoderPaths":
    from magicvideo.models.pretrained_encoders import resolve_frozen_encoders
    from magicvideo.training.components import frozen_encoder_paths
    from magicvideo.training.export import read_run_recipe
    from magicvideo.training.run import SETTINGS

    is_run = (model / SETTINGS).is_file()
    return (
        frozen_encoder_paths(read_run_recipe(model)) if is_run else resolve_frozen_encoders(model)
    )


def _runner(workers: int, threads: int, device: str, *, ray: bool) -> "Runner":
    from functools import partial

    from magicvideo.data.shards.ray_runner import run_on_ray
    from magicvideo.data.workers import run_each

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

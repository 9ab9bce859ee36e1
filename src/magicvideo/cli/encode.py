"""`magicvideo data encode`: encodes clips to shards of latents, embeddings and tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from magicvideo.cli.console import make_console, progress_bar, say
from magicvideo.cli.options import with_option_groups

if TYPE_CHECKING:
    from magicvideo.data.prepare import FrameSettings
    from magicvideo.data.shards.encode import EncodeReport, Runner
    from magicvideo.data.shards.writer import EncodeInputs
    from magicvideo.data.sources.source import Source
    from magicvideo.models.pretrained_encoders import FrozenEncoderPaths

Kind = Annotated[
    str | None,
    typer.Option(
        "--source",
        help="Layout of a source: webvid, msr-vtt, ucf101, clip-list, videofolder, folder or "
        "fluent-emoji. By default it is detected.",
        show_default=False,
    ),
]
LongestScene = Annotated[
    bool,
    typer.Option(
        "--longest-scene", help="Use the longest part without a cut of each clip of a source."
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(help="Fraction of a folder's clips to hold out, by a stable hash; 0 by default."),
]


@dataclass(frozen=True)
class DecodeOptions:
    """Options for finding and decoding the clips of a source; None if not given."""

    size: Annotated[
        str | None,
        typer.Option(
            help="Frame size of a source in pixels, multiples of 8: one side of a square, or "
            "WIDTHxHEIGHT; 64 by default."
        ),
    ] = None
    fit: Annotated[
        Literal["crop", "pad"] | None,
        typer.Option(
            help="How to fit frames of another aspect ratio: center crop (default), or pad.",
            show_default=False,
        ),
    ] = None
    frame_step: Annotated[
        int | None,
        typer.Option(help="Keep every N-th frame of a source; all by default.", metavar="N"),
    ] = None
    holdout: Holdout = None
    kind: Kind = None
    longest_scene: LongestScene = False

    def open_source(self, folder: Path) -> "Source":
        """Open a source.

        Raises:
            UserError: If the folder is not a source, or is invalid.
        """
        from magicvideo.data.sources.registry import open_source

        return open_source(
            folder, self.holdout or 0.0, kind=self.kind, longest_scene=self.longest_scene
        )

    def open_inputs(self, folder: Path) -> "EncodeInputs":
        """Open the clips of a source, which are decoded during encoding.

        Raises:
            UserError: If a setting is invalid, or the folder is not a source.
        """
        from magicvideo.data.shards.writer import inputs_from_source

        frames = self.frame_settings()
        return inputs_from_source(self.open_source(folder), frames)

    def frame_settings(self) -> "FrameSettings":
        """Return the frame size and the frame step.

        Raises:
            UserError: If one is invalid.
        """
        from magicvideo.data.prepare import FrameSettings, parse_size

        height, width = parse_size(self.size or "64")
        return FrameSettings(height, width, self.fit or "crop", _or(self.frame_step, 1))


@dataclass(frozen=True)
class EncodeOptions:
    """Options for encoding clips; None if not given."""

    variants: Annotated[
        int | None,
        typer.Option(
            help="Variants (background and caption) of clips that can have several; 4 by default."
        ),
    ] = None
    clips_per_shard: Annotated[
        int | None, typer.Option(help="Clips per tar file; 256 by default.")
    ] = None
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Device of the encoders; cpu by default.", show_default=False),
    ] = None
    threads: Annotated[int | None, typer.Option(help="CPU threads per shard; 1 by default.")] = None
    ray: Annotated[
        bool, typer.Option("--ray", help="Write the shards on the running Ray cluster.")
    ] = False


def explicit_options(options: DecodeOptions | EncodeOptions) -> dict[str, object]:
    """Return the given options, by their names on the command line."""
    named = {"kind": "source"}
    return {
        f"--{named.get(name, name).replace('_', '-')}": value
        for name, value in vars(options).items()
        if value is not None and value is not False
    }


@with_option_groups
def encode(
    source: Annotated[Path, typer.Argument(help="A prepared folder, or a source to decode.")],
    out: Annotated[
        Path, typer.Argument(help="A new folder, or one of an interrupted run of this command.")
    ],
    model: Annotated[
        Path,
        typer.Option(help="A model, or a run with finished stages autoencoder and clip."),
    ],
    decoding: DecodeOptions,
    encoding: EncodeOptions,
    workers: Annotated[int, typer.Option(help="Number of shards written in parallel.")] = 1,
) -> None:
    """Encode clips into shards for training. The same command resumes an interrupted run.

    Under torchrun or accelerate launch every process writes some of the shards. The shards do not
    depend on the number of processes.

    Examples:
      magicvideo data encode data/emoji64 data/emoji-shards --model runs/emoji
      torchrun --nproc-per-node 8 -m magicvideo data encode CLIPS SHARDS --model MODEL \
        --size 256 --device cuda
      magicvideo data encode CLIPS SHARDS --model MODEL --size 256 --device cuda --ray
    """
    encode_into(out, lambda: _open_inputs(source, decoding), model, encoding, workers)


def encode_into(
    out: Path,
    open_inputs: Callable[[], "EncodeInputs"],
    model: Path,
    encoding: EncodeOptions,
    workers: int,
) -> None:
    """Write the shards of this process, and report the result.

    Args:
        out: A new folder, or one of an interrupted run.
        open_inputs: Opens the clips; called after the other settings are checked.
        model: A model folder, or a run.
        encoding: Options.
        workers: Shards that are written at a time.

    Raises:
        UserError: If a setting is invalid, or no clip can be used.
    """
    from functools import partial

    from magicvideo.data.shards.encode import encode as encode_shards
    from magicvideo.data.workers import Rank
    from magicvideo.errors import UserError

    rank = Rank.from_env()
    if encoding.ray and rank.world_size > 1:
        raise UserError("--ray distributes the work itself; run it without torchrun.")
    inputs = open_inputs()
    device, threads = encoding.device or "cpu", _or(encoding.threads, 1)
    run_jobs = _runner(workers, threads, device, ray=encoding.ray)
    with progress_bar(make_console(), "") as advance:
        report = encode_shards(
            inputs,
            _encoder_paths(model),
            out,
            run_jobs,
            variants=_or(encoding.variants, 4),
            clips_per_shard=_or(encoding.clips_per_shard, 256),
            threads=threads,
            device=device,
            rank=rank,
            on_shard=partial(advance, "encoding"),
        )
    of_this = f" by process {rank.rank} of {rank.world_size}" if rank.world_size > 1 else ""
    _print_report(report, out, of_this)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _print_report(report: "EncodeReport", out: Path, of_this: str) -> None:
    say(f"{out}: {report.written:,} shards written{of_this}, {report.kept:,} from before.")
    if report.missing:
        say(f"{report.missing:,} shards of other processes are missing; the index follows.")
        return
    for skipped in report.skipped:
        say(f"skipped {skipped.file}: {skipped.reason}", err=True)
    say(f"{out}: complete, {report.clips:,} clips, {len(report.skipped):,} files skipped.")


def _open_inputs(source: Path, decoding: DecodeOptions) -> "EncodeInputs":
    from magicvideo.data.doctor import is_prepared_folder
    from magicvideo.data.shards.writer import inputs_from_prepared
    from magicvideo.errors import UserError

    if not is_prepared_folder(source):
        return decoding.open_inputs(source)
    for option, value in explicit_options(decoding).items():
        raise UserError(
            f"{source} is already prepared, so {option} {value} has no effect; omit it, or encode "
            "the source itself."
        )
    return inputs_from_prepared(source)


def _encoder_paths(model: Path) -> "FrozenEncoderPaths":
    from magicvideo.models.pretrained_encoders import resolve_frozen_encoders
    from magicvideo.pipelines.model_folder import find_model_folder
    from magicvideo.training.resolve import frozen_encoder_paths
    from magicvideo.training.run import RECIPE_FILE, read_run_recipe

    model = find_model_folder(model)
    is_run = (model / RECIPE_FILE).is_file()
    return (
        frozen_encoder_paths(read_run_recipe(model)) if is_run else resolve_frozen_encoders(model)
    )


def _runner(workers: int, threads: int, device: str, *, ray: bool) -> "Runner":
    from functools import partial

    from magicvideo.data.workers import map_on_ray, map_unordered

    _check_device(device, ray=ray)
    if ray:
        return partial(map_on_ray, cpus=threads, gpus=1 if device == "cuda" else 0)
    return partial(map_unordered, workers=workers)


def _check_device(device: str, *, ray: bool) -> None:
    import torch

    from magicvideo.errors import UserError

    # the cluster may have devices that this machine lacks
    if device == "cuda" and not ray and not torch.cuda.is_available():
        raise UserError("Device 'cuda' does not exist; omit --device.")

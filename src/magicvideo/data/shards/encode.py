"""Encoding, start to end: clips to shards, split among processes that need not know of each other.

Which clip belongs into which shard depends on the clips alone, and the bytes of a shard on its
clips and the settings. So process r of n makes every nth shard from the rth on, what a killed run
finished is kept, and whichever process finds that all shards are there writes the index.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ValidationError

from magicvideo.atomic_io import atomic_file
from magicvideo.data.manifest import Split
from magicvideo.data.shards.index import INDEX, SETTINGS, ShardIndex, ShardInfo, write_index
from magicvideo.data.shards.inputs import Original, Originals
from magicvideo.data.shards.ranks import Rank
from magicvideo.data.shards.writer import ShardJob, ShardNote, make_shard
from magicvideo.data.sources.source import Skipped
from magicvideo.data.workers import OnProgress
from magicvideo.errors import UserError
from magicvideo.models.pretrained_encoders import FrozenEncoderPaths

Runner: TypeAlias = Callable[
    [Callable[[ShardJob], ShardNote], Sequence[ShardJob]], Iterable[ShardNote]
]
"""Runs a function over jobs, in any order."""


@dataclass(frozen=True)
class Report:
    """What one process did.

    Attributes:
        made: Shards that it made.
        kept: Shards of its own that an earlier run had made.
        missing: Shards of other processes that are not there yet; without any the index is written.
        clips: In all shards, so far as they are there.
        skipped: What became no clip, of the source and in the shards that are there.
    """

    made: int
    kept: int
    missing: int
    clips: int
    skipped: list[Skipped]


def encode(
    originals: Originals,
    folders: FrozenEncoderPaths,
    out: Path,
    run_jobs: Runner,
    *,
    variants: int = 4,
    clips_per_shard: int = 256,
    threads: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    rank: Rank = Rank(),  # noqa: B008 (frozen)
    on_shard: OnProgress | None = None,
) -> Report:
    """Encode the shards that belong to this process, and write the index if all are there then.

    Args:
        originals: The clips.
        folders: The parts that encode.
        out: A new folder, or one that an earlier run with the same settings began.
        run_jobs: Runs the work, here or elsewhere.
        variants: Of each clip that can be shown or told in several ways.
        clips_per_shard: The last shard of a split may have fewer.
        threads: Of the CPU, for each job; the bytes depend on it.
        device: Where the networks work; the bytes depend on it.
        rank: Which of several processes this is.
        on_shard: Called with the numbers of this process's shards done and of all of them.

    Raises:
        UserError: If a setting does not fit, `out` holds something else, or no clip can be used.
    """
    info = _info(originals, folders, variants, clips_per_shard, threads, device)
    where = f"cuda:{rank.local}" if device == "cuda" and rank.world > 1 else device
    _open_folder(out, info)
    jobs = [
        ShardJob(name, split, clips, info, folders, where, out)
        for name, split, clips in assign(originals.clips, clips_per_shard)
    ]
    own = jobs[rank.number :: rank.world]
    waiting = [job for job in own if job.finished() is None]
    if waiting:
        (out / INDEX).unlink(missing_ok=True)
    kept = len(own) - len(waiting)
    for done, _ in enumerate(run_jobs(make_shard, waiting), start=kept + 1):
        if on_shard:
            on_shard(done, len(own))
    notes = [note for job in jobs if (note := job.finished())]
    skipped = [Skipped(*one) for note in notes for one in note.skipped]
    report = Report(
        made=len(waiting),
        kept=kept,
        missing=len(jobs) - len(notes),
        clips=sum(note.shard.clips for note in notes),
        skipped=[*originals.skipped, *skipped],
    )
    if not report.missing:
        _finish(out, info, notes, report)
    return report


def assign(
    clips: Sequence[Original], clips_per_shard: int
) -> list[tuple[str, Split, tuple[Original, ...]]]:
    """Return the name, split and clips of every shard, a pure function of the clips.

    Clips lie in the order of a hash of their ids, so that each shard is a fair sample of its split.
    """
    shards = []
    for split in sorted({clip.split for clip in clips}):
        own = sorted((clip for clip in clips if clip.split == split), key=_hashed)
        for number, start in enumerate(range(0, len(own), clips_per_shard)):
            chosen = tuple(own[start : start + clips_per_shard])
            shards.append((f"{split}-{number:06d}", split, chosen))
    return shards


def _hashed(clip: Original) -> str:
    return hashlib.sha256(clip.id.encode()).hexdigest()


def _info(
    originals: Originals,
    folders: FrozenEncoderPaths,
    variants: int,
    clips_per_shard: int,
    threads: int,
    device: Literal["cpu", "cuda"],
) -> ShardInfo:
    try:
        return ShardInfo(
            source=originals.source,
            origin=originals.origin,
            size=originals.size,
            every=originals.every,
            licence=originals.licence,
            split_rule=originals.split_rule,
            variants=variants,
            clips_per_shard=clips_per_shard,
            parts=folders.hashes(),
            device=device,
            threads=threads,
        )
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        option = str(mistake["loc"][0]).replace("_", "-")
        raise UserError(
            f"--{option} {mistake['input']!r} does not fit: {mistake['msg']}."
        ) from None


def _open_folder(out: Path, info: ShardInfo) -> None:
    """Begin a folder, or compare what it was begun with."""
    path = out / SETTINGS
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder to encode into.")
    if path.is_file():
        _compare(path, info)
        return
    if out.exists() and not _holds_only_beginnings(out):
        raise UserError(f"{out} is not empty and holds no shards; name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _holds_only_beginnings(out: Path) -> bool:
    """Return whether a folder is empty, or another process is just writing its settings."""
    return all(SETTINGS.partition(".")[0] in path.name for path in out.iterdir())


def _compare(path: Path, info: ShardInfo) -> None:
    try:
        before = ShardInfo.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(f"{path} is damaged; encode into a new folder.") from None
    for name, value in info:
        was = getattr(before, name)
        if was != value:
            raise UserError(
                f"{path.parent} was begun with {name}={was} and this command has {name}={value}; "
                "name a new folder."
            )


def _finish(out: Path, info: ShardInfo, notes: list[ShardNote], report: Report) -> None:
    """Write the index, without shards that hold nothing, and remove those of clips that left."""
    if not report.clips:
        reasons = [f" (the first: {one.file}, {one.reason})" for one in report.skipped]
        first = reasons[0] if reasons else ""
        raise UserError(f"Not one clip of {info.origin} can be encoded{first}.")
    index = ShardIndex(info=info, shards=tuple(note.shard for note in notes))
    known = {note.shard.file for note in notes}
    for path in out.glob("*-[0-9]*.tar"):
        if path.name not in known:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
    write_index(out, index)

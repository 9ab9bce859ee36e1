"""Encoding clips into shards, by independent processes.

Which clip belongs into which shard depends on the clips alone, and the bytes of a shard on its
clips and the settings. So process r of n writes every nth shard from the rth on, shards of a killed
run are kept, and whichever process finds that all shards are there writes the index.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ValidationError

from magicvideo.atomic_io import atomic_file, lock_output
from magicvideo.data.manifest import Split
from magicvideo.data.shards.index import (
    INDEX,
    SETTINGS,
    ShardIndex,
    ShardInfo,
    ShardRecord,
    write_index,
)
from magicvideo.data.shards.writer import (
    EncodeInput,
    EncodeInputs,
    ShardJob,
    ShardManifest,
    write_shard,
)
from magicvideo.data.sources.source import SkippedFile
from magicvideo.data.workers import OnProgress, Rank
from magicvideo.errors import UserError
from magicvideo.models.pretrained_encoders import FrozenEncoderPaths

Runner: TypeAlias = Callable[
    [Callable[[ShardJob], ShardManifest], Sequence[ShardJob]], Iterable[ShardManifest]
]
"""Applies a function to jobs and yields the results in any order."""


@dataclass(frozen=True)
class EncodeReport:
    """The result of one process.

    Attributes:
        written: Shards that it wrote.
        kept: Shards of its own that an earlier run had written.
        missing: Shards of other processes that are not there yet; without any the index is written.
        clips: In all shards that are there.
        skipped: Files that became no clip, of the source and in the shards that are there.
    """

    written: int
    kept: int
    missing: int
    clips: int
    skipped: list[SkippedFile]


def encode(
    inputs: EncodeInputs,
    encoders: FrozenEncoderPaths,
    out: Path,
    run_jobs: Runner,
    *,
    variants: int = 4,
    clips_per_shard: int = 256,
    threads: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    rank: Rank = Rank(),  # noqa: B008 (frozen)
    on_shard: OnProgress | None = None,
) -> EncodeReport:
    """Encode the shards that belong to this process, and write the index if all are there then.

    Args:
        inputs: The clips.
        encoders: Where the encoders are.
        out: A new folder, or one that an earlier run with the same settings began.
        run_jobs: Runs the jobs, on this machine or elsewhere.
        variants: Samples of each clip that has several backgrounds or captions.
        clips_per_shard: The last shard of a split may have fewer.
        threads: Of the CPU, for each job; the bytes depend on it.
        device: Where the encoders run; the bytes depend on it.
        rank: Which of several processes this is.
        on_shard: Called with the numbers of this process's finished shards and of all of them.

    Raises:
        UserError: If a setting does not fit, `out` holds something else, or no clip can be used.
    """
    info = _shard_info(inputs, encoders, variants, clips_per_shard, threads, device)
    is_split = device == "cuda" and rank.world_size > 1
    where = f"cuda:{rank.local_rank}" if is_split else device
    _open_folder(out, info)
    jobs = [
        ShardJob(name, split, clips, inputs.frames, info, encoders, where, out)
        for name, split, clips in assign_clips_to_shards(inputs.clips, clips_per_shard)
    ]
    own = jobs[rank.rank :: rank.world_size]
    waiting = [job for job in own if job.finished() is None]
    if waiting:
        (out / INDEX).unlink(missing_ok=True)
    kept = len(own) - len(waiting)
    # of the same rank; other ranks write other shards
    with lock_output(out / f"rank-{rank.rank}"):
        for done, _ in enumerate(run_jobs(write_shard, waiting), start=kept + 1):
            if on_shard:
                on_shard(done, len(own))
    manifests = [manifest for job in jobs if (manifest := job.finished())]
    skipped = [SkippedFile(*one) for manifest in manifests for one in manifest.skipped]
    report = EncodeReport(
        written=len(waiting),
        kept=kept,
        missing=len(jobs) - len(manifests),
        clips=sum(manifest.shard.clips for manifest in manifests),
        skipped=[*inputs.skipped, *skipped],
    )
    if not report.missing:
        _finish(out, info, manifests, report)
    return report


def assign_clips_to_shards(
    clips: Sequence[EncodeInput], clips_per_shard: int
) -> list[tuple[str, Split, tuple[EncodeInput, ...]]]:
    """Return the name, split and clips of every shard, a pure function of the clips.

    Clips are ordered by a hash of their ids, so that each shard is a random sample of its split.
    """
    shards = []
    for split in sorted({clip.split for clip in clips}):
        own = sorted((clip for clip in clips if clip.split == split), key=_id_hash)
        for number, start in enumerate(range(0, len(own), clips_per_shard)):
            chosen = tuple(own[start : start + clips_per_shard])
            shards.append((f"{split}-{number:06d}", split, chosen))
    return shards


def _id_hash(clip: EncodeInput) -> str:
    return hashlib.sha256(clip.id.encode()).hexdigest()


def _shard_info(
    inputs: EncodeInputs,
    encoders: FrozenEncoderPaths,
    variants: int,
    clips_per_shard: int,
    threads: int,
    device: Literal["cpu", "cuda"],
) -> ShardInfo:
    try:
        return ShardInfo(
            source=inputs.source,
            origin=inputs.origin,
            height=inputs.frames.height,
            width=inputs.frames.width,
            fit=inputs.frames.fit,
            frame_step=inputs.frames.step,
            licence=inputs.licence,
            split_rule=inputs.split_rule,
            variants=variants,
            clips_per_shard=clips_per_shard,
            parts=encoders.hashes(),
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
    """Create a folder, or compare the settings that it was created with."""
    path = out / SETTINGS
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder to encode into.")
    if path.is_file():
        _compare(path, info)
        return
    if out.exists() and not _holds_only_settings(out):
        raise UserError(f"{out} is not empty and holds no shards; name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _holds_only_settings(out: Path) -> bool:
    """Return whether a folder is empty, or another process is just writing its settings."""
    return all(SETTINGS.partition(".")[0] in path.name for path in out.iterdir())


def _compare(path: Path, info: ShardInfo) -> None:
    try:
        before = ShardInfo.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(
            f"{path} is damaged or of another version; encode into a new folder."
        ) from None
    for name, value in info:
        was = getattr(before, name)
        if was != value:
            raise UserError(
                f"{path.parent} was begun with {name}={was} and this command has {name}={value}; "
                "name a new folder."
            )


def _finish(
    out: Path, info: ShardInfo, manifests: list[ShardManifest], report: EncodeReport
) -> None:
    """Write the index, and remove shards whose clips have left the source."""
    if not report.clips:
        reasons = [f" (the first: {one.file}, {one.reason})" for one in report.skipped]
        first = reasons[0] if reasons else ""
        raise UserError(f"Not one clip of {info.origin} can be encoded{first}.")
    known = {manifest.shard.file for manifest in manifests}
    for path in out.glob("*-[0-9]*.tar"):
        if path.name not in known:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
    write_index(out, ShardIndex(info=info, shards=_with_subject_counts(manifests)))


def _with_subject_counts(manifests: list[ShardManifest]) -> tuple[ShardRecord, ...]:
    """Return the entries of the index, with the number of clips of each clip's subject."""
    counts = Counter(
        (manifest.shard.split, subject) for manifest in manifests for subject in manifest.subjects
    )
    records = []
    for manifest in manifests:
        split = manifest.shard.split
        own = tuple(counts[split, subject] for subject in manifest.subjects)
        update = {"subject_counts": own} if max(own, default=1) > 1 else {}
        records.append(manifest.shard.model_copy(update=update))
    return tuple(records)

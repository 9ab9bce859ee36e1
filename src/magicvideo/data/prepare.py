"""Preparation: every clip of a source is decoded once into a cache that training reads quickly.

A run that was killed goes on where it stopped: each finished clip is noted in `progress.jsonl`, and
kept if the source file and the cached file are still those that the note speaks of.
"""

import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import sha256 as hash_bytes
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from magicvideo.data.manifest import (
    DATASET,
    MANIFEST,
    Clip,
    DatasetInfo,
    read_info,
    write_info,
    write_manifest,
)
from magicvideo.data.reader import ClipError, read_clip
from magicvideo.data.sources.source import Candidate, Skipped, Source
from magicvideo.errors import UserError
from magicvideo.storage import atomic_file, remove_partial, sha256

CLIPS = "clips"
PROGRESS = "progress.jsonl"
SIZE_STEP = 8


class CachedFile(BaseModel):
    """One line of `progress.jsonl`: which bytes of the source gave which file of the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    source_sha256: str
    file: str
    bytes: int
    frames: int
    fps: float
    channels: int
    sha256: str


@dataclass(frozen=True)
class Report:
    """What became of a source."""

    clips: list[Clip]
    skipped: list[Skipped]
    num_kept: int
    """Clips that an earlier run had finished."""


def prepare(
    source: Source,
    out: Path,
    size: int,
    *,
    workers: int = 1,
    on_clip: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode all clips of a source into `out` and write its manifest.

    Args:
        source: What to decode.
        out: A new folder, or one that an earlier run with the same source and size began.
        size: Side of the square frames in pixels, a multiple of 8.
        workers: Processes that decode.
        on_clip: Called with the numbers of clips done and of all clips.

    Raises:
        UserError: If the settings do not fit, or no clip of the source can be used.
    """
    _check_size(size)
    info = DatasetInfo(
        source=source.name, size=size, licence=source.licence, split_rule=source.split_rule
    )
    _open_folder(out, info)
    finished = _read_progress(out)
    skipped, cached, kept = list(source.skipped), dict[str, CachedFile](), 0
    (out / MANIFEST).unlink(missing_ok=True)
    with (out / PROGRESS).open("a", encoding="utf-8") as progress:
        jobs = [
            (candidate, out, size, finished.get(candidate.id)) for candidate in source.candidates
        ]
        for done, result in enumerate(_run(jobs, workers), start=1):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                cached[result.id] = result
                if result == finished.get(result.id):
                    kept += 1
                else:
                    progress.write(result.model_dump_json() + "\n")
                    progress.flush()
            if on_clip:
                on_clip(done, len(jobs))
    clips = [
        _clip(candidate, cached[candidate.id])
        for candidate in source.candidates
        if candidate.id in cached
    ]
    if not clips:
        raise UserError(nothing_usable(source, skipped))
    _remove_strangers(out, clips)
    write_manifest(out, clips)
    return Report(clips, skipped, kept)


def nothing_usable(source: Source, skipped: list[Skipped]) -> str:
    """Return the sentence for a source without a usable clip, with the first reason in it."""
    reason = f" (the first: {skipped[0].file}, {skipped[0].reason})" if skipped else ""
    return (
        f"Not one of the {len(source.candidates) + len(source.skipped)} files of this "
        f"{source.name} source can be used{reason}; `magicvideo data doctor` lists them all."
    )


def clip_file(clip_id: str) -> str:
    """Return where a clip is cached: its id, made safe for every file system and kept unique."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", clip_id)[:80]
    if safe != clip_id:
        safe += "-" + hash_bytes(clip_id.encode()).hexdigest()[:12]
    return f"{CLIPS}/{safe}.npy"


def _check_size(size: int) -> None:
    if size < SIZE_STEP or size % SIZE_STEP or size > 1024:
        raise UserError(f"size {size} is not a multiple of {SIZE_STEP} between 8 and 1024.")


def _open_folder(out: Path, info: DatasetInfo) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder to prepare into.")
    if not (out / DATASET).exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty and holds no prepared data; name a new folder.")
        (out / CLIPS).mkdir(parents=True, exist_ok=True)
        write_info(out, info)
        return
    existing = read_info(out)
    if (existing.source, existing.size) != (info.source, info.size):
        raise UserError(
            f"{out} holds {existing.source} at size {existing.size}, not {info.source} at size "
            f"{info.size}; name a new folder."
        )
    write_info(out, info)
    (out / CLIPS).mkdir(exist_ok=True)
    remove_partial(out)
    remove_partial(out / CLIPS)


def _read_progress(out: Path) -> dict[str, CachedFile]:
    path = out / PROGRESS
    finished = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            cached = CachedFile.model_validate_json(line)
        except ValidationError:
            continue  # a kill can cut the last line; that clip is made again
        finished[cached.id] = cached
    return finished


_Job = tuple[Candidate, Path, int, CachedFile | None]


def _run(jobs: list[_Job], workers: int) -> Iterator[CachedFile | Skipped]:
    if workers < 2 or len(jobs) < 2:
        yield from map(_prepare_clip, jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_ctrl_c_to_parent)
    try:
        for future in as_completed([pool.submit(_prepare_clip, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "A process that decodes clips was killed; run the same command again with fewer "
            "--workers, finished clips are kept."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_ctrl_c_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _prepare_clip(job: _Job) -> CachedFile | Skipped:
    candidate, out, size, finished = job
    file = clip_file(candidate.id)
    target = out / file
    try:
        source_sha256 = _hash_source(candidate.path)
        if finished and finished.source_sha256 == source_sha256 and _is_whole(target, finished):
            return finished
        decoded = read_clip(candidate.path, size)
        frames = len(decoded.pixels)
        if candidate.frames and frames != candidate.frames:
            raise ClipError(f"has {frames} frames instead of {candidate.frames}")
    except ClipError as error:
        return Skipped(str(candidate.path), str(error))
    with atomic_file(target) as partial:
        np.save(partial, decoded.pixels)
    return CachedFile(
        id=candidate.id,
        source_sha256=source_sha256,
        file=file,
        bytes=target.stat().st_size,
        frames=frames,
        fps=decoded.fps,
        channels=decoded.pixels.shape[-1],
        sha256=sha256(target),
    )


def _hash_source(path: Path) -> str:
    try:
        return sha256(path) if path.is_file() else ""
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror})") from None


def _is_whole(target: Path, finished: CachedFile) -> bool:
    return target.is_file() and target.stat().st_size == finished.bytes


def _clip(candidate: Candidate, cached: CachedFile) -> Clip:
    return Clip.model_validate(
        {
            **cached.model_dump(include={"id", "file", "frames", "fps", "channels", "sha256"}),
            "split": candidate.split,
            "loops": candidate.loops,
            "text": candidate.text,
            "attributes": candidate.attributes,
        }
    )


def _remove_strangers(out: Path, clips: list[Clip]) -> None:
    known = {out / clip.file for clip in clips}
    for path in (out / CLIPS).glob("*.npy"):
        if path not in known:
            path.unlink()

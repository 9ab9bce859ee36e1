"""Preparation: every clip of a source is decoded once into a cache that training reads quickly.

A run that was killed goes on where it stopped: each finished clip is noted in `progress.jsonl`, and
kept if the source file and the cached file are still those that the note speaks of.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256 as hash_bytes
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from magicvideo.atomic_io import atomic_file, remove_partial, sha256
from magicvideo.data.decode import fingerprint, read_candidate
from magicvideo.data.manifest import (
    DATASET,
    MANIFEST,
    Clip,
    ClipFile,
    DatasetInfo,
    read_info,
    write_info,
    write_manifest,
)
from magicvideo.data.sources.source import Candidate, Skipped, Source
from magicvideo.data.workers import OnProgress, run_each
from magicvideo.errors import UserError
from magicvideo.media.video_reader import ClipError

CLIPS = "clips"
PROGRESS = "progress.jsonl"
SIZE_STEP = 8


class CachedFile(BaseModel):
    """One line of `progress.jsonl`: which bytes of the source gave which file of the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    source_sha256: str
    """Of the source file, and which part of it was taken, if not all."""
    file: ClipFile
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
    every: int = 1,
    workers: int = 1,
    on_clip: OnProgress | None = None,
) -> Report:
    """Decode all clips of a source into `out` and write its manifest.

    Args:
        source: What to decode.
        out: A new folder, or one that an earlier run with the same source and settings began.
        size: Side of the square frames in pixels, a multiple of 8.
        every: Keep one frame in so many, from the first on, for data of large frames.
        workers: Processes that decode.
        on_clip: Called with the numbers of clips done and of all clips.

    Raises:
        UserError: If the settings do not fit, or no clip of the source can be used.
    """
    check_settings(size, every)
    info = DatasetInfo(
        source=source.name,
        origin=str(source.folder.resolve()),
        size=size,
        every=every,
        licence=source.licence,
        split_rule=source.split_rule,
    )
    _open_folder(out, info)
    finished = _clean_progress(out)
    jobs = [(one, out, size, every, finished.get(one.id)) for one in source.candidates]
    (out / MANIFEST).unlink(missing_ok=True)
    cached, skipped, num_kept = _cache_all(jobs, out / PROGRESS, workers, on_clip)
    skipped = [*source.skipped, *skipped]
    clips = [as_clip(one, cached[one.id]) for one in source.candidates if one.id in cached]
    if not clips:
        raise UserError(_nothing_usable(source, skipped))
    _remove_strangers(out, clips)
    write_manifest(out, clips)
    return Report(clips, skipped, num_kept)


def _nothing_usable(source: Source, skipped: list[Skipped]) -> str:
    """Return the sentence for a source without a usable clip, with the first reason in it."""
    reason = f" (the first: {skipped[0].file}, {skipped[0].reason})" if skipped else ""
    return (
        f"Not one of the {len(source.candidates) + len(source.skipped)} files of this "
        f"{source.name} source can be used{reason}; `magicvideo data doctor` lists them all."
    )


def clip_file(clip_id: str) -> str:
    """Return where a clip is cached: its id, made safe for every file system and kept unique."""
    safe = re.sub(r"[^a-z0-9_-]", "_", clip_id.lower())[:80]
    if safe != clip_id:
        safe += "-" + hash_bytes(clip_id.encode()).hexdigest()[:12]
    return f"{CLIPS}/{safe}.npy"


def check_settings(size: int, every: int) -> None:
    """Check the side of frames and the step between those that are kept.

    Raises:
        UserError: If one does not fit.
    """
    if size < SIZE_STEP or size % SIZE_STEP or size > 1024:
        raise UserError(f"size {size} is not a multiple of {SIZE_STEP} between 8 and 1024.")
    if every < 1:
        raise UserError(f"--frame-step {every} is not 1 (all frames) or more.")


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
    before, now = _described(existing), _described(info)
    if before != now:
        raise UserError(f"{out} holds {before}, not {now}; name a new folder.")
    write_info(out, info)
    (out / CLIPS).mkdir(exist_ok=True)
    remove_partial(out)
    remove_partial(out / CLIPS)


def _described(info: DatasetInfo) -> str:
    kept = "" if info.every == 1 else f" with --frame-step {info.every}"
    return f"{info.origin} at size {info.size}{kept}"


def read_progress(out: Path) -> dict[str, CachedFile]:
    """Return what is finished in a prepared folder, by clip id, less the line that a kill cut."""
    path = out / PROGRESS
    finished = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValidationError):
            cached = CachedFile.model_validate_json(line)
            finished[cached.id] = cached
    return finished


def _clean_progress(out: Path) -> dict[str, CachedFile]:
    """Return what is finished, and write it back without the line that a kill cut."""
    finished = read_progress(out)
    with atomic_file(out / PROGRESS) as partial:
        lines = [cached.model_dump_json() + "\n" for cached in finished.values()]
        partial.write_text("".join(lines), encoding="utf-8")
    return finished


_Job: TypeAlias = tuple[Candidate, Path, int, int, CachedFile | None]


def _cache_all(
    jobs: list[_Job], progress: Path, workers: int, on_clip: OnProgress | None
) -> tuple[dict[str, CachedFile], list[Skipped], int]:
    """Return the cached files by clip id, what was skipped, and how many were there before."""
    cached, skipped, num_kept = dict[str, CachedFile](), list[Skipped](), 0
    with progress.open("a", encoding="utf-8") as notes:
        for done, result in enumerate(run_each(_cache, jobs, workers), start=1):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                one, kept = result
                cached[one.id] = one
                num_kept += kept
                notes.write("" if kept else one.model_dump_json() + "\n")
                notes.flush()
            if on_clip:
                on_clip(done, len(jobs))
    return cached, skipped, num_kept


def _cache(job: _Job) -> tuple[CachedFile, bool] | Skipped:
    """Return the cached file and whether an earlier run had made it."""
    candidate, out, size, every, finished = job
    file = clip_file(candidate.id)
    target = out / file
    try:
        source_sha256 = fingerprint(candidate)
        if finished and finished.source_sha256 == source_sha256 and _is_whole(target, finished):
            return finished, True
        decoded = read_candidate(candidate, size)
    except ClipError as error:
        return Skipped(candidate.file, str(error))
    pixels = np.ascontiguousarray(decoded.pixels[::every])
    with atomic_file(target) as partial:
        _write_array(partial, pixels)
    cached = CachedFile(
        id=candidate.id,
        source_sha256=source_sha256,
        file=file,
        bytes=target.stat().st_size,
        frames=len(pixels),
        fps=decoded.fps / every,
        channels=pixels.shape[-1],
        sha256=sha256(target),
    )
    return cached, False


def _write_array(path: Path, pixels: NDArray[np.uint8]) -> None:
    # np.save would lose the reason when a write fails, such as a full disk
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(pixels)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(pixels.data)


def _is_whole(target: Path, finished: CachedFile) -> bool:
    return target.is_file() and target.stat().st_size == finished.bytes


def as_clip(candidate: Candidate, cached: CachedFile) -> Clip:
    """Return the line of the manifest for a decoded candidate."""
    return Clip.model_validate(
        {
            **cached.model_dump(include={"id", "file", "frames", "fps", "channels", "sha256"}),
            "split": candidate.split,
            "loops": candidate.loops,
            "text": candidate.text,
            "other_texts": candidate.other_texts,
            "attributes": candidate.attributes,
        }
    )


def _remove_strangers(out: Path, clips: list[Clip]) -> None:
    known = {out / clip.file for clip in clips}
    for path in (out / CLIPS).glob("*.npy"):
        if path not in known:
            path.unlink()

"""What becomes of every file of a source, a prepared folder or shards, and why."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from magicvideo.atomic_io import sha256
from magicvideo.data.decode import read_candidate
from magicvideo.data.manifest import DATASET, Clip, Split, read_info, read_manifest
from magicvideo.data.prepare import CLIPS
from magicvideo.data.shards.index import Shard, read_index
from magicvideo.data.sources.source import Candidate, Source
from magicvideo.data.workers import OnProgress, run_each
from magicvideo.media.video_reader import ClipError

_LOOK_SIZE = 64  # a clip that can be decoded at one size can be decoded at any


@dataclass(frozen=True)
class Finding:
    """One file: used in a split, and what it is, or skipped, and why."""

    file: str
    split: Split | None
    detail: str


def is_prepared(folder: Path) -> bool:
    """Tell a prepared folder from a source."""
    return (folder / DATASET).is_file()


def examine_source(
    source: Source, *, workers: int = 1, on_file: OnProgress | None = None
) -> list[Finding]:
    """Decode every clip of a source as preparation would, and keep nothing."""
    findings = [Finding(skipped.file, None, skipped.reason) for skipped in source.skipped]
    for done, finding in enumerate(run_each(_examine, source.candidates, workers), start=1):
        findings.append(finding)
        if on_file:
            on_file(done, len(source.candidates))
    return sorted(findings, key=lambda finding: finding.file)


def examine_prepared(
    folder: Path, *, workers: int = 1, on_file: OnProgress | None = None
) -> list[Finding]:
    """Check every cached clip against the manifest, byte by byte.

    Raises:
        UserError: If the folder was not prepared to the end, or its manifest is damaged.
    """
    read_info(folder)
    clips = read_manifest(folder)
    known = {folder / clip.file for clip in clips}
    findings = [
        Finding(path.relative_to(folder).as_posix(), None, "not in the manifest")
        for path in (folder / CLIPS).iterdir()
        if path not in known
    ]
    check = partial(_examine_cached, folder)
    for done, finding in enumerate(run_each(check, clips, workers), start=1):
        findings.append(finding)
        if on_file:
            on_file(done, len(clips))
    return sorted(findings, key=lambda finding: finding.file)


def examine_shards(
    folder: Path, *, workers: int = 1, on_file: OnProgress | None = None
) -> list[Finding]:
    """Check every shard against the index, byte by byte.

    Raises:
        UserError: If the shards are not finished, or their index is damaged.
    """
    shards = read_index(folder).shards
    findings = []
    check = partial(_examine_shard, folder)
    for done, finding in enumerate(run_each(check, shards, workers), start=1):
        findings.append(finding)
        if on_file:
            on_file(done, len(shards))
    return sorted(findings, key=lambda finding: finding.file)


def _examine(candidate: Candidate) -> Finding:
    try:
        decoded = read_candidate(candidate, _LOOK_SIZE)
    except ClipError as error:
        return Finding(candidate.file, None, str(error))
    frames, _, _, channels = decoded.pixels.shape
    told = bool(candidate.text or candidate.attributes)
    return Finding(candidate.file, candidate.split, _say(frames, decoded.fps, channels, told))


def _examine_cached(folder: Path, clip: Clip) -> Finding:
    path = folder / clip.file
    if not path.is_file():
        return Finding(clip.file, None, "missing")
    if sha256(path) != clip.sha256:
        return Finding(clip.file, None, "damaged: its SHA-256 is not the manifest's")
    detail = _say(clip.frames, clip.fps, clip.channels, clip.has_caption)
    return Finding(clip.file, clip.split, detail)


def _examine_shard(folder: Path, shard: Shard) -> Finding:
    path = folder / shard.file
    if not path.is_file():
        return Finding(shard.file, None, "missing")
    if sha256(path) != shard.sha256:
        return Finding(shard.file, None, "damaged: its SHA-256 is not the index's")
    return Finding(shard.file, shard.split, f"{shard.clips} clips, {shard.samples} samples")


def _say(frames: int, fps: float, channels: int, told: bool) -> str:
    kind = "transparent" if channels == 4 else "opaque"
    return f"{frames} frames at {fps:.4g} a second, {kind}{'' if told else ', no caption'}"

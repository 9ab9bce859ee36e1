"""Checks of every file of a source, a prepared folder or shards, with the reasons."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from magicvideo.atomic_io import sha256
from magicvideo.data.manifest import DATASET, ClipRecord, Split, read_info, read_manifest
from magicvideo.data.prepare import CLIPS, FrameSettings, decode_source_clip
from magicvideo.data.shards.index import ShardRecord, read_index
from magicvideo.data.sources.source import Source, SourceClip
from magicvideo.data.workers import OnProgress, map_unordered
from magicvideo.errors import ClipError

_FRAMES = FrameSettings(64, 64)  # a clip that can be decoded at one size can be decoded at any


@dataclass(frozen=True)
class Finding:
    """One file: used in a split, with its properties, or skipped, with the reason."""

    file: str
    split: Split | None
    detail: str


def is_prepared_folder(folder: Path) -> bool:
    """Return whether a folder is a prepared one, not a source."""
    return (folder / DATASET).is_file()


def check_source(
    source: Source, *, workers: int = 1, on_file: OnProgress | None = None
) -> list[Finding]:
    """Decode every clip of a source as preparation would, and keep nothing."""
    findings = [Finding(skipped.file, None, skipped.reason) for skipped in source.skipped]
    for done, finding in enumerate(map_unordered(_check_clip, source.clips, workers), start=1):
        findings.append(finding)
        if on_file:
            on_file(done, len(source.clips))
    return sorted(findings, key=lambda finding: finding.file)


def check_prepared(
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
    check = partial(_check_cached, folder)
    for done, finding in enumerate(map_unordered(check, clips, workers), start=1):
        findings.append(finding)
        if on_file:
            on_file(done, len(clips))
    return sorted(findings, key=lambda finding: finding.file)


def check_shards(
    folder: Path, *, workers: int = 1, on_file: OnProgress | None = None
) -> list[Finding]:
    """Check every shard against the index, byte by byte.

    Raises:
        UserError: If the shards are not finished, or their index is damaged.
    """
    shards = read_index(folder).shards
    findings = []
    check = partial(_check_shard, folder)
    for done, finding in enumerate(map_unordered(check, shards, workers), start=1):
        findings.append(finding)
        if on_file:
            on_file(done, len(shards))
    return sorted(findings, key=lambda finding: finding.file)


def _check_clip(candidate: SourceClip) -> Finding:
    try:
        decoded = decode_source_clip(candidate, _FRAMES)
    except ClipError as error:
        return Finding(candidate.file, None, str(error))
    frames, _, _, channels = decoded.pixels.shape
    has_caption = bool(candidate.text or candidate.attributes)
    detail = _describe(frames, decoded.fps, channels, has_caption)
    return Finding(candidate.file, candidate.split, ", ".join([detail, *decoded.changes]))


def _check_cached(folder: Path, clip: ClipRecord) -> Finding:
    path = folder / clip.file
    if not path.is_file():
        return Finding(clip.file, None, "missing")
    if sha256(path) != clip.sha256:
        return Finding(clip.file, None, "damaged: its SHA-256 is not the manifest's")
    detail = _describe(clip.frames, clip.fps, clip.channels, clip.has_caption)
    return Finding(clip.file, clip.split, detail)


def _check_shard(folder: Path, shard: ShardRecord) -> Finding:
    path = folder / shard.file
    if not path.is_file():
        return Finding(shard.file, None, "missing")
    if sha256(path) != shard.sha256:
        return Finding(shard.file, None, "damaged: its SHA-256 is not the index's")
    return Finding(shard.file, shard.split, f"{shard.clips} clips, {shard.samples} samples")


def _describe(frames: int, fps: float, channels: int, has_caption: bool) -> str:
    kind = "transparent" if channels == 4 else "opaque"
    return f"{frames} frames at {fps:.4g} a second, {kind}{'' if has_caption else ', no caption'}"

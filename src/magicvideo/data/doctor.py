"""Checks of every file of a source, a prepared folder or shards, with reasons and warnings."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from magicvideo.atomic_io import sha256
from magicvideo.data.manifest import DATASET, ClipRecord, Split, read_info, read_manifest
from magicvideo.data.prepare import CLIPS, FittedClip, FrameSettings, decode_source_clip
from magicvideo.data.shards.index import ShardRecord, read_index
from magicvideo.data.sources.source import Source, SourceClip
from magicvideo.data.workers import OnProgress, map_unordered
from magicvideo.errors import ClipError

FEW_FRAMES = 16
"""Frames of a training sample of the shipped recipes; shorter clips repeat their last frame."""
FEW_FRAMES_A_SECOND = 5.0
LARGE_CROP = 0.5
"""Fraction of a frame; if less of it is kept, a warning says so."""

_NUMBER = re.compile(r"\b\d[\d.,:]*(x\d+)?\b")
_QUOTED = re.compile(r'"[^"]*"(, "[^"]*")*')


@dataclass(frozen=True)
class Finding:
    """One file: used in a split, with its properties, or skipped, with the reason.

    Attributes:
        file: Its path in the source, in a form that can be printed.
        split: None if it is skipped.
        detail: Properties, or the reason.
        warnings: What is likely not wanted, of a file that is used.
    """

    file: str
    split: Split | None
    detail: str
    warnings: tuple[str, ...] = ()


def is_prepared_folder(folder: Path) -> bool:
    """Return whether a folder is a prepared one, not a source."""
    return (folder / DATASET).is_file()


def check_source(
    source: Source,
    frames: FrameSettings | None = None,
    *,
    unknown_words: Callable[[str], list[str]] | None = None,
    workers: int = 1,
    on_file: OnProgress | None = None,
) -> list[Finding]:
    """Decode every clip of a source as preparation would, and keep nothing.

    Args:
        source: The clips.
        frames: The settings of the preparation; 64 pixels a side by default.
        unknown_words: Returns the words of a caption that a model has not been trained on.
        workers: Processes that decode.
        on_file: Called with the numbers of finished files and of all files.
    """
    findings = [Finding(skipped.file, None, skipped.reason) for skipped in source.skipped]
    captions = {clip.file: clip.text for clip in source.clips if clip.text}
    check = partial(_check_clip, frames or FrameSettings.square(64))
    for done, finding in enumerate(map_unordered(check, source.clips, workers), start=1):
        caption = captions.get(finding.file)
        if unknown_words and caption and finding.split and (words := unknown_words(caption)):
            quoted = ", ".join(f'"{word}"' for word in words)
            warning = f"the model has not seen {quoted}"
            finding = replace(finding, warnings=(*finding.warnings, warning))
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
    info = read_info(folder)
    clips = read_manifest(folder)
    known = {folder / clip.file for clip in clips}
    findings = [
        Finding(path.relative_to(folder).as_posix(), None, "not in the manifest")
        for path in (folder / CLIPS).iterdir()
        if path not in known
    ]
    check = partial(_check_cached, folder, f"{info.width}x{info.height}")
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


def count_by_cause(texts: Iterable[str]) -> list[tuple[str, int]]:
    """Return causes with their counts, the most frequent first.

    Reasons and warnings that differ only in numbers or quoted words have one cause: "cut off: 46 of
    120 frames are there" and others become "cut off: N of N frames are there".
    """
    by_cause: dict[str, list[str]] = {}
    for text in texts:
        cause = _QUOTED.sub("a word", _NUMBER.sub("N", text))
        by_cause.setdefault(cause, []).append(text)
    counts = [
        (cause if len(set(found)) > 1 else found[0], len(found))
        for cause, found in by_cause.items()
    ]
    return sorted(counts, key=lambda item: -item[1])


def _check_clip(frames: FrameSettings, clip: SourceClip) -> Finding:
    try:
        fitted = decode_source_clip(clip, frames)
    except ClipError as error:
        return Finding(clip.file, None, str(error))
    has_caption = bool(clip.text or clip.attributes)
    size = f"{fitted.source_width}x{fitted.source_height}"
    count, _, _, channels = fitted.pixels.shape
    detail = _describe(count, fitted.fps, size, channels, has_caption)
    kept = _kept_fraction(fitted, frames)
    if kept < 1 and frames.fit == "crop":
        detail += f", cropped to {kept:.0%} of it"
    elif kept < 1:
        detail += ", padded with bars"
    detail = ", ".join([detail, *fitted.changes])
    return Finding(clip.file, clip.split, detail, _warnings(fitted, frames, kept))


def _warnings(fitted: FittedClip, frames: FrameSettings, kept: float) -> tuple[str, ...]:
    found = []
    count = len(fitted.pixels)
    if count < FEW_FRAMES:
        found.append(f"only {count} frames, fewer than the {FEW_FRAMES} of a training sample")
    if fitted.fps < FEW_FRAMES_A_SECOND:
        found.append(f"only {fitted.fps:.3g} frames per second")
    sides = (fitted.source_height / frames.height, fitted.source_width / frames.width)
    # a crop is as large as the side that fits less often, padding as the one that fits more often
    if (min(sides) if frames.fit == "crop" else max(sides)) < 1:
        found.append(f"enlarged to {frames.width}x{frames.height} pixels, which adds no detail")
    if frames.fit == "crop" and kept < LARGE_CROP:
        found.append("more than half of each frame is cut off; --fit pad keeps all of it")
    return tuple(found)


def _kept_fraction(fitted: FittedClip, frames: FrameSettings) -> float:
    """Return how much of a frame of the source a crop to the wanted shape keeps."""
    shapes = (fitted.source_width / fitted.source_height, frames.width / frames.height)
    return min(shapes) / max(shapes)


def _check_cached(folder: Path, size: str, clip: ClipRecord) -> Finding:
    path = folder / clip.file
    if not path.is_file():
        return Finding(clip.file, None, "missing")
    if sha256(path) != clip.sha256:
        return Finding(clip.file, None, "damaged: its SHA-256 is not the manifest's")
    detail = _describe(clip.frames, clip.fps, size, clip.channels, clip.has_caption)
    return Finding(clip.file, clip.split, detail)


def _check_shard(folder: Path, shard: ShardRecord) -> Finding:
    path = folder / shard.file
    if not path.is_file():
        return Finding(shard.file, None, "missing")
    if sha256(path) != shard.sha256:
        return Finding(shard.file, None, "damaged: its SHA-256 is not the index's")
    return Finding(shard.file, shard.split, f"{shard.clips} clips, {shard.samples} samples")


def _describe(frames: int, fps: float, size: str, channels: int, has_caption: bool) -> str:
    kind = "transparent" if channels == 4 else "opaque"
    caption = "" if has_caption else ", no caption"
    return f"{size} pixels, {frames} frames at {fps:.4g} a second, {kind}{caption}"

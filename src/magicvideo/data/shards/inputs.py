"""What is encoded: the clips of a prepared folder, or those of a source, decoded on the way."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.decode import fingerprint, read_candidate
from magicvideo.data.manifest import Clip, Split
from magicvideo.data.prepare import CachedFile, as_clip, clip_file, read_progress
from magicvideo.data.sources.source import Candidate, Skipped, Source
from magicvideo.errors import UserError


@dataclass(frozen=True)
class Original:
    """One clip before it is encoded."""

    id: str
    split: Split
    file: str
    """Its path inside the source, as it is shown."""
    stamp: str
    """What changes when the clip does, found without reading its pixels."""
    entry: Clip | Candidate
    path: Path
    source_sha256: str | None
    """None where it is known only once the file is read."""


@dataclass(frozen=True)
class Originals:
    """All clips that are encoded together, and where they are from."""

    source: str
    origin: str
    size: int
    every: int
    licence: str
    split_rule: str
    clips: list[Original]
    skipped: list[Skipped]


@dataclass(frozen=True)
class ReadClip:
    """A clip with its pixels, uint8 `f h w c`, and the SHA-256 of its source file."""

    clip: Clip
    pixels: NDArray[np.uint8]
    source_sha256: str | None


def prepared_originals(folder: Path) -> Originals:
    """Return the clips of a prepared folder.

    Raises:
        UserError: If the folder is not prepared to the end or a file is missing.
    """
    dataset = ClipDataset(folder, get_args(Split))
    info, finished = dataset.info, read_progress(folder)
    clips = [
        Original(
            id=clip.id,
            split=clip.split,
            file=clip.file,
            stamp=_stamp(clip.model_dump_json()),
            entry=clip,
            path=folder / clip.file,
            source_sha256=finished[clip.id].source_sha256 if clip.id in finished else None,
        )
        for clip in dataset.clips
    ]
    return Originals(
        source=info.source,
        origin=info.origin,
        size=info.size,
        every=info.every,
        licence=info.licence,
        split_rule=info.split_rule,
        clips=clips,
        skipped=[],
    )


def source_originals(source: Source, size: int, every: int) -> Originals:
    """Return the clips of a source, which are decoded when they are encoded.

    Args:
        source: What to decode.
        size: Side of the square frames in pixels.
        every: Keep one frame in so many.
    """
    clips = [
        Original(
            id=one.id,
            split=one.split,
            file=one.file,
            stamp=_stamp(repr(asdict(one)), *_look(one.path)),
            entry=one,
            path=one.path,
            source_sha256=None,
        )
        for one in source.candidates
    ]
    return Originals(
        source=source.name,
        origin=str(source.folder.resolve()),
        size=size,
        every=every,
        licence=source.licence,
        split_rule=source.split_rule,
        clips=clips,
        skipped=source.skipped,
    )


def read_original(original: Original, size: int, every: int) -> ReadClip:
    """Return a clip with all its frames.

    Raises:
        ClipError: If a source file cannot be used.
        UserError: If a file of a prepared folder is damaged.
    """
    if isinstance(original.entry, Clip):
        try:
            pixels = np.load(original.path)
        except (OSError, ValueError, EOFError):
            raise UserError(
                f"{original.path} is damaged; delete it and run `magicvideo data prepare` again."
            ) from None
        return ReadClip(original.entry, pixels, original.source_sha256)
    candidate = original.entry
    decoded = read_candidate(candidate, size)
    pixels = decoded.pixels[::every]
    digest = fingerprint(candidate)
    read = CachedFile(
        id=candidate.id,
        source_sha256=digest,
        file=clip_file(candidate.id),
        bytes=candidate.path.stat().st_size,
        frames=len(pixels),
        fps=decoded.fps / every,
        channels=pixels.shape[-1],
        sha256=digest,
    )
    return ReadClip(as_clip(candidate, read), pixels, digest)


def _look(path: Path) -> tuple[str, ...]:
    """Return the size and date of a file; to hash all of them would be to read all of them."""
    try:
        status = path.stat()
    except OSError:
        return ("unreadable",)
    return str(status.st_size), str(status.st_mtime_ns)


def _stamp(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

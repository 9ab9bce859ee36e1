"""The clips of a data set that a benchmark asks for: their captions, and their pixels as they lie.

Every layout that `open_source` knows can be a reference, and so can a prepared folder. Its frames
were cut and resized once before, which generated ones were not, so results tell it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from magicvideo.data.manifest import MANIFEST, Split, read_info, read_manifest
from magicvideo.data.sources.registry import open_source
from magicvideo.data.sources.source import Candidate
from magicvideo.errors import UserError
from magicvideo.media.video_reader import ClipError, read_whole

_PREPARED = ".npy"


@dataclass(frozen=True, kw_only=True)
class ReferenceClip:
    """A real clip: its id, its file, and all that is said of it.

    In data sets of classes the one caption is the name of the class.
    """

    id: str
    path: Path
    captions: tuple[str, ...]
    fps: float | None = None
    """Where the file does not know it."""


@dataclass(frozen=True, kw_only=True)
class ClipPixels:
    """The frames of a file at their own size and rate."""

    pixels: UInt8[np.ndarray, "f h w 3"]
    fps: float


def reference_clips(folder: Path, split: Split) -> list[ReferenceClip]:
    """Return the clips of one split that have captions, sorted by id.

    Raises:
        UserError: If the folder is no data set, has no such clip, or its clips are parts of files.
    """
    if (folder / MANIFEST).is_file():
        clips = _prepared(folder, split)
    else:
        candidates = [one for one in open_source(folder).candidates if one.split == split]
        if any(one.span for one in candidates):
            raise UserError(
                f"{folder} has clips that are parts of longer files; prepare it, and name the "
                "prepared folder."
            )
        clips = [
            ReferenceClip(id=one.id, path=one.path, captions=captions_of(one))
            for one in candidates
            if captions_of(one)
        ]
    if not clips:
        raise UserError(
            f"{folder} has no clip with a caption in the split {split}, which the protocol asks "
            "for; name another folder with --reference."
        )
    return sorted(clips, key=lambda clip: clip.id)


def prepared_side(folder: Path) -> int | None:
    """Return the side of the frames of a prepared folder in pixels, None for any other folder.

    Raises:
        UserError: If the prepared folder does not say it.
    """
    return read_info(folder).size if (folder / MANIFEST).is_file() else None


def captions_of(candidate: Candidate) -> tuple[str, ...]:
    """Return all captions of a clip; sources of several keep the others beside the first."""
    others = candidate.other_texts
    return () if candidate.text is None else (candidate.text, *others)


def read_clip_pixels(path: Path, fps: float | None = None) -> ClipPixels:
    """Decode a video file, or a clip of a prepared folder, which needs its rate from the manifest.

    Raises:
        ClipError: If it cannot be used; the message is the reason.
    """
    if path.suffix == _PREPARED:
        try:
            pixels = np.load(path)
        except (OSError, ValueError, EOFError):
            raise ClipError("cannot be read") from None
        return ClipPixels(pixels=_opaque(pixels), fps=fps or 1.0)
    decoded = read_whole(path)
    return ClipPixels(pixels=_opaque(decoded.pixels), fps=decoded.fps)


def _opaque(pixels: UInt8[np.ndarray, "f h w c"]) -> UInt8[np.ndarray, "f h w 3"]:
    if pixels.shape[-1] != 3:
        raise ClipError("transparent, and there is no background to put behind it")
    return pixels


def _prepared(folder: Path, split: Split) -> list[ReferenceClip]:
    return [
        ReferenceClip(
            id=clip.id,
            path=folder / clip.file,
            captions=(clip.text, *clip.other_texts),
            fps=clip.fps,
        )
        for clip in read_manifest(folder)
        if clip.split == split and clip.text is not None
    ]

"""Candidates to frames: the one way from what a source offers to pixels."""

from functools import lru_cache
from pathlib import Path

from magicvideo.atomic_io import sha256
from magicvideo.data.scenes import longest_scene
from magicvideo.data.sources.source import Candidate
from magicvideo.media.video_reader import ClipError, DecodedClip, read_clip


def read_candidate(candidate: Candidate, size: int) -> DecodedClip:
    """Decode what a candidate is of its file: all of it, a span, the longest scene of either.

    Args:
        candidate: What to decode.
        size: Side of the square frames in pixels, 8 or more.

    Raises:
        ClipError: If it cannot be used; the message is the reason.
    """
    whole = read_clip(candidate.path, size, expected_frames=candidate.frames, span=candidate.span)
    if not candidate.longest_scene:
        return whole
    scene = longest_scene(whole.pixels)
    if len(scene) < 2:
        raise ClipError("no two frames without a cut between them")
    return DecodedClip(scene, whole.fps)


def fingerprint(candidate: Candidate) -> str:
    """Return what changes whenever the candidate would give other frames.

    Raises:
        ClipError: If the file cannot be read.
    """
    path = candidate.path
    try:
        status = path.stat() if path.is_file() else None
        digest = _sha256(path, status.st_size, status.st_mtime_ns) if status else ""
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror})") from None
    if candidate.span:
        digest += f" from {candidate.span[0]!r} to {candidate.span[1]!r}"
    return digest + " longest scene" * candidate.longest_scene


@lru_cache(maxsize=4)
def _sha256(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 (part of the key)
    # Clips of one long video come one after another, and its bytes are read once for all of them
    return sha256(path)

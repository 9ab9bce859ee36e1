"""Video files of any length: looked through once, then read frame by frame."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from magicvideo.media.video_reader import Pictures, check_clip


@dataclass(frozen=True)
class ClipOutline:
    """What there is to know of a file but for its pixels.

    Attributes:
        num_frames: Two or more.
        height: Of all frames, in pixels.
        width: Likewise.
        fps: Frames a second; the mean rate where they are of unequal duration.
    """

    num_frames: int
    height: int
    width: int
    fps: float


def outline_clip(path: Path) -> ClipOutline:
    """Decode a whole file and keep nothing, to find out whether all of it can be used.

    Raises:
        ClipError: If it is no video, damaged, cut off, a still, or its frames are too large.
    """
    pictures = Pictures(path, sys.maxsize)
    num_frames, sizes = 0, set()
    for picture in pictures:
        num_frames += 1
        sizes.add(picture.size)
    check_clip(num_frames, len(sizes))
    width, height = sizes.pop()
    return ClipOutline(num_frames, height, width, pictures.fps)


def stream_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w c"]]:
    """Yield the frames of a file: c=4 premultiplied RGBA of GIF and WebP, c=3 RGB of others.

    Raises:
        ClipError: As for `outline_clip`, where it is noticed.
    """
    return map(np.asarray, Pictures(path, sys.maxsize))

"""A user's own footage: any video file, a few frames of it in memory at a time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from magicvideo.errors import UserError
from magicvideo.media.probe import outline_clip, stream_frames
from magicvideo.media.video_io import check_frames, to_pixels, write_pixels
from magicvideo.media.video_reader import ClipError

_WHITE = 255
_USUAL_AREA = 256 * 256  # pixels of a frame up to which as many are taken at a time

Frame: TypeAlias = Float[Tensor, "3 h w"]
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Footage:
    """A video of any length, whose frames are made when they are asked for.

    Attributes:
        frames: Pixels in [-1, 1], to be gone through once.
        num_frames: How many there are.
        height: Of all of them, in pixels.
        width: Likewise.
        fps: Frames a second.
    """

    frames: Iterable[Frame]
    num_frames: int
    height: int
    width: int
    fps: float

    def at_once(self, most: int) -> int:
        """Return how many frames a network sees at a time: `most`, or fewer of large ones."""
        return max(1, most * _USUAL_AREA // max(_USUAL_AREA, self.height * self.width))

    def parts(self, most: int) -> Iterator[Float[Tensor, "f 3 h w"]]:
        """Yield the frames, as many at a time as `at_once` says."""
        frames = iter(self.frames)
        while part := list(islice(frames, self.at_once(most))):
            yield torch.stack(part)


def open_footage(path: Path) -> Footage:
    """Return a video file, which is looked through to its end first, so that no work is in vain.

    Transparent pictures lie on white.

    Raises:
        UserError: If the file cannot be read as a video.
    """
    with _clip_errors(path):
        found = outline_clip(path)
    return Footage(_read(path), found.num_frames, found.height, found.width, found.fps)


def write_footage(
    footage: Footage, path: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write footage while it is made; the suffix tells the format, as for `write_video`.

    A GIF holds all frames until the last is there, as bytes; the others hold a few.

    Args:
        footage: What is written.
        path: The output.
        overwrite: Whether an existing output is replaced.
        progress: Called with a stage, the frames that are done and their number.

    Raises:
        UserError: If the output exists or cannot be written, or its format cannot hold frames of
            this size or so many.
    """
    check_frames(path, footage.num_frames, footage.height, footage.width)
    pixels = _pixels(footage, progress)
    write_pixels(pixels, footage.fps, "", path, overwrite=overwrite)


def _read(path: Path) -> Iterator[Frame]:
    with _clip_errors(path):
        for pixels in stream_frames(path):
            if pixels.shape[-1] == 4:
                pixels = np.minimum(pixels[..., :3] + (_WHITE - pixels[..., 3:]), _WHITE)
            yield rearrange(torch.from_numpy(pixels.copy()).float() / 127.5 - 1, "h w c -> c h w")


def _pixels(footage: Footage, progress: Progress | None) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for done, frame in enumerate(footage.frames, start=1):
        yield to_pixels(frame[None])[0]
        if progress is not None:
            progress("writing", done, footage.num_frames)


@contextmanager
def _clip_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ClipError as error:
        raise UserError(f"{path} cannot be used: {error}.") from None

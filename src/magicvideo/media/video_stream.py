"""Videos of any length, with a few frames in memory at a time."""

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

from magicvideo.errors import ClipError, UserError
from magicvideo.media.video_io import check_frames, to_uint8, write_pixels
from magicvideo.media.video_reader import iter_frames, probe_video

_WHITE = 255
_FULL_BATCH_AREA = 256 * 256  # pixels of a frame up to which a batch is full

Frame: TypeAlias = Float[Tensor, "3 h w"]
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class VideoStream:
    """A video of any length, whose frames are made when they are asked for.

    Attributes:
        frames: Pixels in [-1, 1], to be iterated once.
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

    def frames_per_batch(self, max_frames: int) -> int:
        """Return how many frames a network gets at a time: `max_frames`, or fewer of large ones."""
        return max(
            1, max_frames * _FULL_BATCH_AREA // max(_FULL_BATCH_AREA, self.height * self.width)
        )

    def batches(self, max_frames: int) -> Iterator[Float[Tensor, "f 3 h w"]]:
        """Yield the frames, as many at a time as `frames_per_batch` says."""
        frames = iter(self.frames)
        while part := list(islice(frames, self.frames_per_batch(max_frames))):
            yield torch.stack(part)


def open_video_stream(path: Path) -> VideoStream:
    """Return a video file, which is decoded to its end first, so that damage costs no other work.

    Transparent parts are white.

    Raises:
        UserError: If the file cannot be read as a video.
    """
    with _clip_errors(path):
        found = probe_video(path)
    return VideoStream(_read(path), found.num_frames, found.height, found.width, found.fps)


def write_video_stream(
    stream: VideoStream, path: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write a video while its frames are made; the suffix tells the format, as for `write_video`.

    A GIF holds all frames until the last is there, as bytes; the others hold a few.

    Args:
        stream: What is written.
        path: The output.
        overwrite: Whether an existing output is replaced.
        progress: Called with a stage, the frames that are done and their number.

    Raises:
        UserError: If the output exists or cannot be written, or its format cannot hold frames of
            this size or so many.
    """
    check_frames(path, stream.num_frames, stream.height, stream.width)
    pixels = _pixels(stream, progress)
    write_pixels(pixels, stream.fps, "", path, overwrite=overwrite)


def _read(path: Path) -> Iterator[Frame]:
    with _clip_errors(path):
        for pixels in iter_frames(path):
            if pixels.shape[-1] == 4:
                pixels = np.minimum(pixels[..., :3] + (_WHITE - pixels[..., 3:]), _WHITE)
            yield rearrange(torch.from_numpy(pixels.copy()).float() / 127.5 - 1, "h w c -> c h w")


def _pixels(stream: VideoStream, progress: Progress | None) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for done, frame in enumerate(stream.frames, start=1):
        yield to_uint8(frame[None])[0]
        if progress is not None:
            progress("writing", done, stream.num_frames)


@contextmanager
def _clip_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ClipError as error:
        raise UserError(f"{path} cannot be used: {error}.") from None

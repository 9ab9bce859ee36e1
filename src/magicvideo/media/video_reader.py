"""Video files to frames, with guards against files that are broken or huge."""

import os
import stat
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from magicvideo.media.container_metadata import stated_duration, stated_end
from magicvideo.media.image_ops import centre_square, upright
from magicvideo.media.time_ranges import Span, SpanFrames

MAX_PIXELS = 4096 * 2304
"""Largest frame that is decoded; 8192 x 8192 in a 200 kB file is an attack or a mistake."""
MAX_FRAMES = 5000
"""Longest clip; its frames are held in memory while it is prepared."""
MAX_BYTES = 1 << 30
"""Of all frames of a video that is held in memory at its own size."""

PICTURE_SUFFIXES = frozenset({".gif", ".webp"})
MATROSKA_SUFFIXES = frozenset({".mkv", ".webm"})
VIDEO_SUFFIXES = MATROSKA_SUFFIXES | {".mp4", ".m4v", ".mov", ".avi"}

_SLACK = 1.5  # frames by which a file may fall short of the duration that it states
_UNTIMED_FRAME = 100.0  # milliseconds that browsers give to a frame that states no duration

Fit: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]


class ClipError(Exception):
    """A clip that cannot be used; the message is the reason, worded to follow "skipped: "."""


@dataclass(frozen=True)
class DecodedClip:
    """The frames of a file: uint8 `f h w c`, c=4 premultiplied RGBA or c=3 RGB."""

    pixels: NDArray[np.uint8]
    fps: float


def read_clip(
    path: Path, size: int, *, expected_frames: int | None = None, span: Span | None = None
) -> DecodedClip:
    """Decode a file, or a span of a video, and cut its centre square out, `size` pixels a side.

    GIF and WebP keep their transparency; video files give RGB, turned upright where they carry a
    rotation. Frames of unequal duration are taken as evenly spaced at their mean rate. A span is
    reached by its nearest key frame, so that a clip of an hour's video costs no hour.

    Raises:
        ClipError: If the file is no video, damaged, cut off, a still, over the limits, has not
            `expected_frames`, or ends before the span does.
    """
    clip = _read(path, partial(centre_square, size=size), span)
    if expected_frames and len(clip.pixels) != expected_frames:
        raise ClipError(f"has {len(clip.pixels)} frames instead of {expected_frames}")
    return clip


def read_whole(path: Path) -> DecodedClip:
    """Decode a whole file at its own size; otherwise as `read_clip`.

    Raises:
        ClipError: As for `read_clip`, and if its frames are too large all together.
    """
    size = 0

    def keep(picture: Image.Image) -> NDArray[np.uint8]:
        nonlocal size
        frame = np.asarray(picture)
        size += frame.nbytes
        if size > MAX_BYTES:
            raise ClipError(f"more than {MAX_BYTES:,} bytes of pixels; cut it into shorter clips")
        return frame

    return _read(path, keep)


def _read(path: Path, fit: Fit, span: Span | None = None) -> DecodedClip:
    pictures = Pictures(path, MAX_FRAMES, span)
    frames = [fit(picture) for picture in pictures]
    if all(frame.shape[-1] == 4 and frame[..., 3].min() == 255 for frame in frames):
        frames = [frame[..., :3] for frame in frames]
    check_clip(len(frames), len({frame.shape for frame in frames}))
    return DecodedClip(np.stack(frames), pictures.fps)


class Pictures:
    """The pictures of a file at its own size, to be gone through once.

    GIF and WebP give premultiplied RGBA, video files RGB. What makes a file unusable is a
    `ClipError` where it is noticed, a missing end after the last picture.

    Args:
        path: The file.
        most: Frames that it may have.
        span: The part that is wanted, of a video file.

    Attributes:
        fps: Frames a second, there after the last picture.
    """

    fps: float

    def __init__(self, path: Path, most: int, span: Span | None = None) -> None:
        self._path, self._most, self._span = path, most, span

    def __iter__(self) -> Iterator[Image.Image]:
        """Yield the pictures."""
        _check_file(self._path)
        if self._path.suffix.lower() not in PICTURE_SUFFIXES:
            self.fps = yield from _read_video(self._path, self._most, self._span)
        elif self._span:
            raise ClipError("a GIF or WebP, of which no part can be taken")
        else:
            self.fps = yield from _read_animation(self._path, self._most)


def check_clip(num_frames: int, num_sizes: int) -> None:
    """Refuse stills, and frames of several sizes.

    Raises:
        ClipError: If there are fewer than two frames, or more than one size.
    """
    if num_frames < 2:
        raise ClipError("a still picture" if num_frames else "no frame can be decoded")
    if num_sizes > 1:
        raise ClipError("frames of different sizes")


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("not a regular file")
    if status.st_size == 0:
        raise ClipError("empty file")


def _read_animation(path: Path, most: int) -> Generator[Image.Image, None, float]:
    """Yield premultiplied RGBA; return frames a second."""
    if path.suffix.lower() == ".gif":
        _check_gif(path, most)
    durations: list[float] = []
    with _picture_errors():
        animation = Image.open(path)
    with animation:
        with _picture_errors():
            _check_frame_size(*animation.size)
            count = getattr(animation, "n_frames", 1)
        _check_count(count, most)
        for number in range(count):
            with _picture_errors():
                animation.seek(number)
                animation.load()
                durations.append(float(animation.info.get("duration") or _UNTIMED_FRAME))
                picture = animation.convert("RGBA").convert("RGBa")
            yield picture
    return 1000 / float(np.mean(durations))


@contextmanager
def _picture_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ClipError(f"frames of more than {MAX_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            raise ClipError("not a picture file") from None
        except (OSError, EOFError, SyntaxError, ValueError, IndexError, MemoryError) as error:
            raise ClipError(f"damaged or cut off ({error})") from None


def _check_gif(path: Path, most: int) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"GIF8":
            raise ClipError("not a GIF file")
        file.seek(-1, os.SEEK_END)
        if file.read() != b";":
            raise ClipError("damaged or cut off (its end mark is not there)")
    # Counted without decoding: Pillow would walk through a million frames before it says so
    with _video_errors(), av.open(str(path), options={"max_pixels": str(MAX_PIXELS)}) as container:
        for number, _ in enumerate(container.demux()):
            _check_count(number, most)


def _check_segment(path: Path) -> None:
    """Compare the size that a Matroska or WebM file states with its own.

    Frames are stored out of order, so a file that lost its end may still show its last frame.
    """
    size, end = path.stat().st_size, stated_end(path)
    if end is not None and end > size:
        raise ClipError(f"cut off: {size:,} of {end:,} bytes are there")


def _read_video(path: Path, most: int, span: Span | None) -> Generator[Image.Image, None, float]:
    """Yield RGB; return frames a second."""
    if path.suffix.lower() in MATROSKA_SUFFIXES:
        with _video_errors():
            _check_segment(path)
    with _video_errors(), av.open(str(path), options={"max_pixels": str(MAX_PIXELS)}) as container:
        if not container.streams.video:
            raise ClipError("only sound" if container.streams.audio else "no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ClipError("a kind of video that cannot be decoded")
        _check_frame_size(stream.codec_context.width, stream.codec_context.height)
        _check_count(0 if span else stream.frames, most)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.codec_context.thread_count = 1
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise ClipError("no frame rate")
        if span:
            shown = _decode_span(container, stream, rate, span)
        else:
            shown = _decode(container, stream, rate)
        for number, frame in enumerate(shown, start=1):
            _check_frame_size(frame.width, frame.height)
            _check_count(number, most)
            yield upright(frame)
        return float(rate)


def _decode(container: InputContainer, stream: VideoStream, rate: Fraction) -> Iterator[VideoFrame]:
    num_packets, num_frames, end = 0, 0, 0.0
    for packet in container.demux(stream):
        num_packets += packet.size > 0
        for frame in packet.decode():
            if frame.is_corrupt:
                raise ClipError(f"frame {num_frames} is damaged")
            yield frame
            num_frames += 1
            end = (frame.time or 0.0) + float(1 / rate)
    if num_packets < stream.frames:
        raise ClipError(f"cut off: {num_packets} of {stream.frames} frames are there")
    declared = stated_duration(container, stream)
    if not stream.frames and end < declared - _SLACK / rate:
        raise ClipError(f"cut off: {end:.2f} of {declared:.2f} seconds are there")


def _decode_span(
    container: InputContainer, stream: VideoStream, rate: Fraction, span: Span
) -> Iterator[VideoFrame]:
    declared, slack = stated_duration(container, stream), float(_SLACK / rate)
    if declared and span[1] > declared + slack:
        raise ClipError(f"ends at {span[1]:g} seconds, and the video at {declared:.2f}")
    shown = SpanFrames(container, stream, span)
    yield from shown
    since, last = shown.seen or (span[1], span[0])
    if since > span[0] + slack or (shown.next is None and last + slack < span[1] - 1 / rate):
        raise ClipError(f"cut off: not all of {span[0]:g} to {span[1]:g} seconds is there")
    if shown.num_lost:
        raise ClipError(f"{shown.num_lost} frames are damaged between a key frame and its end")


@contextmanager
def _video_errors() -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise ClipError(f"damaged or no video ({error.strerror})") from None
    except (ValueError, MemoryError, OverflowError) as error:
        raise ClipError(f"damaged or no video ({error})") from None


def _check_frame_size(width: int, height: int) -> None:
    if not width * height:  # what FFmpeg says after its own check of max_pixels
        raise ClipError(f"frames of more than {MAX_PIXELS:,} pixels, or of no stated size")
    if width * height > MAX_PIXELS:
        raise ClipError(f"frames of {width}x{height}, more than {MAX_PIXELS:,} pixels")


def _check_count(frames: int, most: int) -> None:
    if frames > most:
        raise ClipError(f"more than {most:,} frames; cut it into shorter clips")

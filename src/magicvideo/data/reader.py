"""Video files to frames, with guards against files that are broken or huge."""

import os
import stat
import warnings
from collections.abc import Callable, Iterator
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

from magicvideo.data.spans import Span, SpanFrames

MAX_PIXELS = 4096 * 2304
"""Largest frame that is decoded; 8192 x 8192 in a 200 kB file is an attack or a mistake."""
MAX_FRAMES = 5000
"""Longest clip; its frames are held in memory while it is prepared."""
MAX_BYTES = 1 << 30
"""Of all frames of a video that is read at its own size."""

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
    clip = _read(path, partial(_square, size=size), span)
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
    try:
        status = path.stat()
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("not a regular file")
    if status.st_size == 0:
        raise ClipError("empty file")
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        frames, fps = _read_video(path, fit, span)
    elif span:
        raise ClipError("a GIF or WebP, of which no part can be taken")
    else:
        frames, fps = _read_picture(path, fit)
    if len(frames) < 2:
        raise ClipError("a still picture" if frames else "no frame can be decoded")
    if len({frame.shape for frame in frames}) > 1:
        raise ClipError("frames of different sizes")
    return DecodedClip(np.stack(frames), fps)


def _read_picture(path: Path, fit: Fit) -> tuple[list[NDArray[np.uint8]], float]:
    if path.suffix.lower() == ".gif":
        _check_gif(path)
    frames: list[NDArray[np.uint8]] = []
    durations: list[float] = []
    with _picture_errors(), Image.open(path) as picture:
        _check_frame_size(*picture.size)
        count = getattr(picture, "n_frames", 1)
        _check_count(count)
        for number in range(count):
            picture.seek(number)
            picture.load()
            durations.append(float(picture.info.get("duration") or _UNTIMED_FRAME))
            frames.append(fit(picture.convert("RGBA").convert("RGBa")))
    if frames and all(frame[..., 3].min() == 255 for frame in frames):
        frames = [frame[..., :3] for frame in frames]
    return frames, 1000 / float(np.mean(durations))


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


def _check_gif(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"GIF8":
            raise ClipError("not a GIF file")
        file.seek(-1, os.SEEK_END)
        if file.read() != b";":
            raise ClipError("damaged or cut off (its end mark is not there)")
    # Counted without decoding: Pillow would walk through a million frames before it says so
    with _video_errors(), av.open(str(path), options={"max_pixels": str(MAX_PIXELS)}) as container:
        for number, _ in enumerate(container.demux()):
            _check_count(number)


def _check_segment(path: Path) -> None:
    """Compare the size that a Matroska or WebM file states with its own.

    Frames are stored out of order, so a file that lost its end may still show its last frame. A
    size of all ones means "not known", as in recordings of live streams.
    """
    with path.open("rb") as file:
        for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
            head = file.read(5)
            if head[:4] != element or len(head) < 5 or not head[4]:
                raise ClipError("damaged or no video (its Matroska header is not readable)")
            more = 8 - head[4].bit_length()
            size = int.from_bytes(head[4:] + file.read(more), "big") & (1 << 7 * (more + 1)) - 1
            end = file.tell() + size
            if element == b"\x1a\x45\xdf\xa3":
                file.seek(end)
        known = size != (1 << 7 * (more + 1)) - 1
    if known and end > path.stat().st_size:
        raise ClipError(f"cut off: {path.stat().st_size:,} of {end:,} bytes are there")


def _read_video(path: Path, fit: Fit, span: Span | None) -> tuple[list[NDArray[np.uint8]], float]:
    if path.suffix.lower() in MATROSKA_SUFFIXES:
        _check_segment(path)
    with _video_errors(), av.open(str(path), options={"max_pixels": str(MAX_PIXELS)}) as container:
        if not container.streams.video:
            raise ClipError("only sound" if container.streams.audio else "no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ClipError("a kind of video that cannot be decoded")
        _check_frame_size(stream.codec_context.width, stream.codec_context.height)
        _check_count(0 if span else stream.frames)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.codec_context.thread_count = 1
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise ClipError("no frame rate")
        if span:
            return _decode_span(container, stream, rate, fit, span), float(rate)
        return _decode(container, stream, rate, fit), float(rate)


def _decode(
    container: InputContainer, stream: VideoStream, rate: Fraction, fit: Fit
) -> list[NDArray[np.uint8]]:
    frames: list[NDArray[np.uint8]] = []
    num_packets, end = 0, 0.0
    for packet in container.demux(stream):
        num_packets += packet.size > 0
        for frame in packet.decode():
            if frame.is_corrupt:
                raise ClipError(f"frame {len(frames)} is damaged")
            _check_frame_size(frame.width, frame.height)
            _check_count(len(frames) + 1)
            frames.append(fit(_upright(frame)))
            end = (frame.time or 0.0) + float(1 / rate)
    if num_packets < stream.frames:
        raise ClipError(f"cut off: {num_packets} of {stream.frames} frames are there")
    declared = _declared_duration(container, stream)
    if not stream.frames and end < declared - _SLACK / rate:
        raise ClipError(f"cut off: {end:.2f} of {declared:.2f} seconds are there")
    return frames


def _decode_span(
    container: InputContainer, stream: VideoStream, rate: Fraction, fit: Fit, span: Span
) -> list[NDArray[np.uint8]]:
    declared, slack = _declared_duration(container, stream), float(_SLACK / rate)
    if declared and span[1] > declared + slack:
        raise ClipError(f"ends at {span[1]:g} seconds, and the video at {declared:.2f}")
    frames: list[NDArray[np.uint8]] = []
    shown = SpanFrames(container, stream, span)
    for frame in shown:
        _check_frame_size(frame.width, frame.height)
        _check_count(len(frames) + 1)
        frames.append(fit(_upright(frame)))
    since, last = shown.seen or (span[1], span[0])
    if since > span[0] + slack or (shown.next is None and last + slack < span[1] - 1 / rate):
        raise ClipError(f"cut off: not all of {span[0]:g} to {span[1]:g} seconds is there")
    if shown.num_lost:
        raise ClipError(f"{shown.num_lost} frames are damaged between a key frame and its end")
    return frames


def _declared_duration(container: InputContainer, stream: VideoStream) -> float:
    """Return seconds, or 0 where a file does not say how long its pictures last."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if "DURATION" in stream.metadata:  # Matroska and WebM: 00:00:01.334000000
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return 0.0


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


def _check_count(frames: int) -> None:
    if frames > MAX_FRAMES:
        raise ClipError(f"more than {MAX_FRAMES:,} frames; cut it into shorter clips")


def _upright(frame: VideoFrame) -> Image.Image:
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _square(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    shrinks = side >= size
    resized = picture.resize(
        (size, size),
        Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    return np.asarray(resized)

"""Reading frames of video files and animations, with limits for damaged and huge files.

`open_media` alone opens a container. `FrameReader` yields the frames of a file as they are shown;
`read_clip`, `read_clip_native`, `probe_video` and `iter_frames` are built on it.
"""

import stat
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from magicvideo.errors import ClipError
from magicvideo.limits import MAX_CLIP_BYTES, MAX_CLIP_FRAMES, MAX_FRAME_PIXELS
from magicvideo.media.frame_display import FrameDisplay, check_frame_size, deinterlace
from magicvideo.media.images import is_image_file, read_animation

ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".apng"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
    | {".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv"}
)
"""Names by which folders are searched for videos; how a file is read depends on its content."""

TimeRange: TypeAlias = tuple[float, float]
"""Start and end in seconds from the first frame of a file; the end is no longer shown."""

_Fit: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]

# Each reads one file and opens no other. Left out are those that follow lists of files or addresses
# (concat, hls, dash, image2, sdp), devices, and demuxers that take any text for a video.
_DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,dv,mxf,nut,ivf,yuv4mpegpipe"
_MATROSKA_HEADER, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_LIST = "a list of other files, which is not followed"
_NO_VIDEOS = {
    b"version https://git-lfs": "a pointer of Git LFS in place of the video; run git lfs pull",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"#extm3u": _LIST,
    b"ffconcat": _LIST,
    b"\xff\xd8\xff": "a still picture",
}
# brands of the file type box of ISO/IEC 23008-12, which AVIF and HEIC share with MP4
_PICTURE_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"}
# FFmpeg's own decoders of VP8 and VP9 drop the alpha channel, libvpx keeps it
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_SLACK = 1.5  # frames by which a file may fall short of the duration that it declares
_TIME_ROUNDING = 0.0005  # seconds: Matroska states times in whole milliseconds
_RATES = (0.01, 1000.0)  # frames per second that a file may have


@dataclass(frozen=True)
class DecodedClip:
    """The frames of a file.

    Attributes:
        pixels: Uint8 `f h w c`, c=4 premultiplied RGBA or c=3 RGB.
        fps: Frames per second; the mean rate where they are of unequal duration.
        changes: Descriptions of conversions, such as "deinterlaced".
    """

    pixels: NDArray[np.uint8]
    fps: float
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file.

    Attributes:
        num_frames: Two or more.
        height: Of all frames as they are shown, in pixels.
        width: Likewise.
        fps: Frames per second; the mean rate where they are of unequal duration.
    """

    num_frames: int
    height: int
    width: int
    fps: float


def read_clip(
    path: Path,
    size: int,
    *,
    expected_frames: int | None = None,
    time_range: TimeRange | None = None,
) -> DecodedClip:
    """Decode a file, or a part of a video, and cut its centre square out, `size` pixels a side.

    Frames are shown as `media.frame_display` says. Frames of unequal duration count as evenly
    spaced at their mean rate. A part is reached by the key frame before it, so that a clip of an
    hour's video does not take an hour.

    Raises:
        ClipError: If the file is not a video, is damaged, truncated, a still or too large, does not
            have `expected_frames`, or ends before the time range does.
    """
    clip = _read(path, partial(center_crop_resize, size=size), time_range)
    if expected_frames and len(clip.pixels) != expected_frames:
        raise ClipError(f"has {len(clip.pixels)} frames instead of {expected_frames}")
    return clip


def read_clip_native(path: Path) -> DecodedClip:
    """Decode a whole file at its own size; otherwise as `read_clip`.

    Raises:
        ClipError: As for `read_clip`, and if its frames are too large all together.
    """
    size = 0

    def keep(picture: Image.Image) -> NDArray[np.uint8]:
        nonlocal size
        frame = np.asarray(picture)
        size += frame.nbytes
        if size > MAX_CLIP_BYTES:
            raise ClipError(
                f"more than {MAX_CLIP_BYTES:,} bytes of pixels; cut it into shorter clips"
            )
        return frame

    return _read(path, keep)


def probe_video(
    path: Path,
    max_frames: int = sys.maxsize,
    on_frame: Callable[[Image.Image, int], None] | None = None,
) -> VideoInfo:
    """Decode a whole file without keeping its frames, to check that it can be used.

    Args:
        path: The file.
        max_frames: Frames that it may have.
        on_frame: Called with each frame and the number of frames so far; may raise to stop.

    Raises:
        ClipError: If it is not a video, is damaged, truncated or a still, or its frames are too
            large.
    """
    reader = FrameReader(path, max_frames)
    num_frames, sizes = 0, set()
    for picture in reader:
        num_frames += 1
        sizes.add(picture.size)
        if on_frame is not None:
            on_frame(picture, num_frames)
    validate_clip(num_frames, len(sizes))
    width, height = sizes.pop()
    return VideoInfo(num_frames, height, width, reader.fps)


def iter_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w c"]]:
    """Yield the frames of a file of any length: c=4 premultiplied RGBA, or c=3 RGB.

    Raises:
        ClipError: As for `probe_video`, where it is noticed.
    """
    return map(np.asarray, FrameReader(path, sys.maxsize))


def center_crop_resize(picture: Image.Image, size: int) -> UInt8[np.ndarray, "size size c"]:
    """Return the centre square of a picture, `size` pixels a side."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    resized = picture.resize(
        (size, size),
        Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    return np.asarray(resized)


def validate_clip(num_frames: int, num_sizes: int) -> None:
    """Refuse stills, and frames of several sizes.

    Raises:
        ClipError: If there are fewer than two frames, or more than one size.
    """
    if num_frames < 2:
        raise ClipError("a still picture" if num_frames else "no frame can be decoded")
    if num_sizes > 1:
        raise ClipError("frames of different sizes")


def _read(path: Path, fit: _Fit, time_range: TimeRange | None = None) -> DecodedClip:
    reader = FrameReader(path, MAX_CLIP_FRAMES, time_range)
    frames = [fit(picture) for picture in reader]
    validate_clip(len(frames), len({frame.shape for frame in frames}))
    if all(frame.shape[-1] == 4 and frame[..., 3].min() == 255 for frame in frames):
        frames = [frame[..., :3] for frame in frames]
    return DecodedClip(np.stack(frames), reader.fps, tuple(sorted(reader.changes)))


class FrameReader:
    """The displayed frames of a file, at its own size; can be iterated once.

    Files with transparency give pictures of mode RGBa (premultiplied), others RGB. What makes a
    file unusable is a `ClipError` where it is noticed, a missing end after the last picture.

    Args:
        path: The file.
        max_frames: Frames that it may have.
        time_range: The part that is wanted, of a video file.

    Attributes:
        fps: Frames per second, set after the last picture.
        changes: Descriptions of conversions.
    """

    fps: float

    def __init__(self, path: Path, max_frames: int, time_range: TimeRange | None = None) -> None:
        self._path, self._max_frames, self._time_range = path, max_frames, time_range
        self.changes: set[str] = set()

    def __iter__(self) -> Iterator[Image.Image]:
        """Yield the pictures."""
        check_file(self._path)
        if not is_image_file(self._path):
            self.fps = yield from self._read_video()
        elif self._time_range:
            raise ClipError("a GIF, WebP or PNG, of which no part can be taken")
        else:
            self.fps = yield from read_animation(self._path, self._max_frames)

    def _read_video(self) -> Generator[Image.Image, None, float]:
        """Yield the pictures; return frames per second."""
        with open_media(self._path) as container:
            stream = _choose_stream(container)
            check_frame_size(stream.codec_context.width, stream.codec_context.height)
            self._check_count(0 if self._time_range else stream.frames)
            timing = _Timing(stream)
            decoded = (
                _decode_range(container, stream, timing, self._time_range)
                if self._time_range
                else _decode_all(container, stream, timing)
            )
            display = FrameDisplay(
                stream.sample_aspect_ratio,
                # the fourth byte of uncompressed captures is padding
                keep_alpha=not ("avi" in container.format.name and stream.name == "rawvideo"),
                changes=self.changes,
            )
            for frame in deinterlace(self._check(decoded), self.changes):
                yield display.show(frame)
            return timing.rate()

    def _check(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        for number, frame in enumerate(frames, start=1):
            check_frame_size(frame.width, frame.height)
            self._check_count(number)
            yield frame

    def _check_count(self, num_frames: int) -> None:
        if num_frames > self._max_frames:
            raise ClipError(f"more than {self._max_frames:,} frames; cut it into shorter clips")


def check_file(path: Path) -> None:
    """Check that a path is a non-empty regular file.

    Raises:
        ClipError: If it is missing, a folder, a pipe or a device, or has no bytes.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ClipError(f"cannot be read ({reason})") from None
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("not a regular file")
    if status.st_size == 0:
        raise ClipError("empty file")


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a video file; nothing else in the program opens one.

    The name is always that of a file, never a protocol or an address; the file is read by one of
    the demuxers that open no other; frames over the limit are refused by the decoder.

    Raises:
        ClipError: If it is not a video or is damaged, also if detected inside the context.
    """
    check_file(path)
    with _translate_errors():
        _check_start(path)
        container = av.open(
            f"file:{path}",
            options={
                "protocol_whitelist": "file",
                "format_whitelist": _DEMUXERS,
                "max_pixels": str(MAX_FRAME_PIXELS),
            },
        )
        with container:
            yield container


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise ClipError(f"damaged or no video ({error.strerror})") from None
    except (ValueError, MemoryError, OverflowError) as error:
        raise ClipError(f"damaged or no video ({error})") from None


def _check_start(path: Path) -> None:
    """Refuse what often lies under the name of a video, and a Matroska file that was cut off."""
    with path.open("rb") as file:
        head = file.read(40)
    words = head.lstrip().lower()
    for start, reason in _NO_VIDEOS.items():
        if words.startswith(start):
            raise ClipError(reason)
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        raise ClipError("an AVIF or HEIC picture; convert it to PNG, or an animation to WebP")
    if head.startswith(_MATROSKA_HEADER):
        _check_segment(path)


def _choose_stream(container: InputContainer) -> VideoStream:
    """Return the video that players show: no cover picture, and the default one of several."""
    hidden = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & hidden]
    if not streams:
        raise ClipError("only sound" if container.streams.audio else "no video stream")
    defaults = [stream for stream in streams if stream.disposition & Disposition.default]
    stream = (defaults or streams)[0]
    if stream.codec_context is None:
        raise ClipError("a kind of video that cannot be decoded")
    return stream


def _make_decoder(stream: VideoStream) -> VideoCodecContext:
    """Return a decoder that keeps transparency, on one thread."""
    context: CodecContext = stream.codec_context
    alpha_mode = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode")
    if alpha_mode == "1" and context.name in _ALPHA_DECODERS:
        context = CodecContext.create(_ALPHA_DECODERS[context.name], "r")
    assert isinstance(context, VideoCodecContext)
    context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    context.thread_count = 1
    return context


class _Timing:
    """Display times of the frames of a stream, and their frame rate."""

    def __init__(self, stream: VideoStream) -> None:
        self._unit = stream.time_base or Fraction(1, av.time_base)
        self._stated = [
            rate
            for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate)
            if rate and _RATES[0] <= rate <= _RATES[1]
        ]
        self._count = 0
        self._first: Fraction | None = None
        self._last = Fraction(0)  # not that of the last frame in AVI, whose times are of decoding

    def add(self, frame: VideoFrame) -> None:
        """Take the time of a frame into account."""
        pts = frame.dts if frame.pts is None else frame.pts
        if pts is not None:
            time = pts * self._unit
            self._last = time if self._first is None else max(self._last, time)
            self._first = time if self._first is None else min(self._first, time)
            self._count += 1

    @property
    def last(self) -> float:
        """Return when the last frame is shown, in seconds."""
        return float(self._last)

    @property
    def interval(self) -> float:
        """Return seconds of a frame: as stated, or the mean so far where that is longer."""
        stated = float(1 / self._stated[0]) if self._stated else 0.0
        mean = float(self._elapsed() / (self._count - 1)) if self._count > 1 else 0.0
        return max(stated, mean)

    def rate(self) -> float:
        """Return the mean number of frames per second.

        It is the stated rate where the times of the frames are that rate's, rounded to the units of
        the file.

        Raises:
            ClipError: If there is none between 0.01 and 1,000.
        """
        elapsed = self._elapsed()
        if elapsed <= 0:  # one frame, or a file without times
            if not self._stated:
                raise ClipError("no frame rate")
            return float(self._stated[0])
        rounding = max(self._unit, Fraction(1, 1000)) * Fraction(3, 2)
        for rate in self._stated:
            if abs(elapsed - (self._count - 1) / rate) <= rounding:
                return float(rate)
        measured = float((self._count - 1) / elapsed)
        if not _RATES[0] <= measured <= _RATES[1]:
            raise ClipError(
                f"{measured:.3g} frames per second; allowed are {_RATES[0]:g} to {_RATES[1]:,.0f}"
            )
        return measured

    def _elapsed(self) -> Fraction:
        return Fraction(0) if self._first is None else self._last - self._first


def _decode_all(
    container: InputContainer, stream: VideoStream, timing: _Timing
) -> Iterator[VideoFrame]:
    """Yield all frames, and refuse the file after the last one if some are missing."""
    decoder = _make_decoder(stream)
    # of a file with a whole index; what an edit list hides is not in it, nor empty frames of AVI
    num_indexed = sum(entry.size > 0 for entry in stream.index_entries) if stream.frames else 0
    num_packets, num_frames, end = 0, 0, 0.0
    for packet in container.demux(stream):
        num_packets += packet.size > 0
        seconds = float((packet.duration or 0) * (packet.time_base or 0))
        for frame in _decode_packet(decoder, packet):
            if frame.is_corrupt:
                raise ClipError(f"frame {num_frames} is damaged")
            timing.add(frame)
            yield frame
            num_frames += 1
            end = max(end, timing.last + max(seconds, timing.interval))
    if num_packets < num_indexed:
        raise ClipError(f"cut off: {num_packets} of {num_indexed} frames are there")
    declared = _declared_duration(container, stream)
    if not num_indexed and end < declared - _SLACK * timing.interval:
        raise ClipError(f"cut off: {end:.2f} of {declared:.2f} seconds are there")


def _decode_packet(
    decoder: VideoCodecContext, packet: "av.Packet[VideoStream]"
) -> list[VideoFrame]:
    if decoder is packet.stream.codec_context:
        return packet.decode()
    # the last packet of a demuxer is empty and flushes the decoder
    return decoder.decode(packet if packet.size else None)


def _decode_range(
    container: InputContainer, stream: VideoStream, timing: _Timing, wanted: TimeRange
) -> Iterator[VideoFrame]:
    """Yield the frames of a time range, and refuse the file if some are missing."""
    declared = _declared_duration(container, stream)
    slack = _SLACK * timing.interval
    if declared and wanted[1] > declared + slack:
        raise ClipError(f"ends at {wanted[1]:g} seconds, and the video at {declared:.2f}")
    trimmed = _TrimmedFrames(container, stream, wanted)
    for frame in trimmed:
        timing.add(frame)
        yield frame
    since, last = trimmed.decoded_range or (wanted[1], wanted[0])
    frame_end = last + max(timing.interval, trimmed.last_duration)
    is_short = trimmed.next_time is None and frame_end + slack < wanted[1]
    if since > wanted[0] + slack or is_short:
        raise ClipError(f"cut off: not all of {wanted[0]:g} to {wanted[1]:g} seconds is there")
    if trimmed.num_lost:
        raise ClipError(f"{trimmed.num_lost} frames are damaged between a key frame and its end")


class _TrimmedFrames:
    """The frames that are shown within a time range, to be iterated once, and what was seen of it.

    Attributes:
        next_time: When the first frame after the range is shown; None if there is none.
        last_duration: Seconds that the last packet states for its frame, or 0.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, wanted: TimeRange) -> None:
        self._container, self._stream, self._wanted = container, stream, wanted
        self._second = float(stream.time_base or Fraction(1, av.time_base))
        self._origin = stream.start_time or 0
        self._stored: list[float] = []
        self._decoded: list[float] = []
        self._num_corrupt = 0
        self.next_time: float | None = None
        self.last_duration = 0.0

    def __iter__(self) -> Iterator[VideoFrame]:
        start, end = (seconds - _TIME_ROUNDING for seconds in self._wanted)
        for frame in self._from_key_frame():
            time = self._seconds(frame.pts or 0)
            if time >= end:
                self.next_time = time
                return
            self._decoded.append(time)
            self._num_corrupt += frame.is_corrupt
            if time >= start:
                yield frame

    @property
    def decoded_range(self) -> TimeRange | None:
        """Return when the first and the last decoded frame are shown; None if there is none."""
        return (self._decoded[0], self._decoded[-1]) if self._decoded else None

    @property
    def num_lost(self) -> int:
        """Return how many frames from the key frame on are missing or damaged.

        Those before the range count, since the frames in it are coded as changes from them.
        """
        if not self._decoded:
            return 0
        first, end = self._decoded[0], self._wanted[1] - _TIME_ROUNDING
        stored = sum(first <= time < end for time in self._stored)
        return max(stored - len(self._decoded), 0) + self._num_corrupt

    def _from_key_frame(self) -> Iterator[VideoFrame]:
        decoder = _make_decoder(self._stream)
        place = self._origin + int(self._wanted[0] / self._second)
        self._container.seek(place, stream=self._stream)
        for packet in self._container.demux(self._stream):
            if packet.size and packet.pts is not None:
                self._stored.append(self._seconds(packet.pts))
                self.last_duration = (packet.duration or 0) * self._second
            yield from _decode_packet(decoder, packet)

    def _seconds(self, pts: int) -> float:
        return (pts - self._origin) * self._second


def _check_segment(path: Path) -> None:
    """Compare the size that a Matroska or WebM file states with its own.

    Frames are stored out of order, so a file that lost its end may still show its last frame.
    """
    size, end = path.stat().st_size, _declared_size(path)
    if end is not None and end > size:
        raise ClipError(f"cut off: {size:,} of {end:,} bytes are there")


def _declared_size(path: Path) -> int | None:
    """Return how many bytes a Matroska or WebM file says that it has.

    None stands for a size of all ones, "not known", as in recordings of live streams.

    Raises:
        ValueError: If it does not begin as such a file does.
    """
    whole = path.stat().st_size
    with path.open("rb") as file:
        for element in (_MATROSKA_HEADER, _MATROSKA_SEGMENT):
            head = file.read(5)
            if head[:4] != element or len(head) < 5 or not head[4]:
                raise ValueError("its Matroska header is not readable")
            more = 8 - head[4].bit_length()
            unknown = (1 << 7 * (more + 1)) - 1
            size = int.from_bytes(head[4:] + file.read(more), "big") & unknown
            end = file.tell() + size
            if element == _MATROSKA_HEADER:
                if end > whole:  # up to 2^56: no file system seeks that far
                    raise ValueError("its Matroska header is not readable")
                file.seek(end)
    return None if size == unknown else end


def _declared_duration(container: InputContainer, stream: VideoStream) -> float:
    """Return seconds, or 0 where a file does not say how long its video lasts."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if "DURATION" in stream.metadata:  # Matroska and WebM: 00:00:01.334000000
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return 0.0


def read_comment(path: Path) -> str | None:
    """Return the comment of a video file, the text that `media.video_writer` stores there.

    Raises:
        ClipError: If the file cannot be opened.
    """
    with open_media(path) as container:
        # Matroska writes the names of its tags in capitals
        found = {key.lower(): value for key, value in container.metadata.items()}
    return found.get("comment")

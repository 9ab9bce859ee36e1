"""Spans of long videos: reached by the key frame before them, without what lies before that."""

from collections.abc import Iterator
from fractions import Fraction
from typing import TypeAlias

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

Span: TypeAlias = tuple[float, float]
"""Start and end in seconds from the first picture of a file; the end is no longer shown."""

_ROUNDING = 0.0005  # seconds: Matroska states times in whole milliseconds


class SpanFrames:
    """The frames that are shown within a span, to be gone through once, and what was seen of it."""

    def __init__(self, container: InputContainer, stream: VideoStream, span: Span) -> None:
        self._container, self._stream, self._span = container, stream, span
        self._second = float(stream.time_base or Fraction(1, av.time_base))
        self._origin = stream.start_time or 0
        self._stored: list[float] = []
        self._decoded: list[float] = []
        self._num_corrupt = 0
        self.next: float | None = None
        """When the first frame after the span is shown; None if there is none."""

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield the frames within the span."""
        start, end = (seconds - _ROUNDING for seconds in self._span)
        for frame in self._from_key_frame():
            time = self._seconds(frame.pts or 0)
            if time >= end:
                self.next = time
                return
            self._decoded.append(time)
            self._num_corrupt += frame.is_corrupt
            if time >= start:
                yield frame

    @property
    def seen(self) -> Span | None:
        """When the first frame that was decoded is shown, and the last; None if none was."""
        return (self._decoded[0], self._decoded[-1]) if self._decoded else None

    @property
    def num_lost(self) -> int:
        """Frames from the key frame on that could not be decoded, or not without damage.

        Those before the span count, since its own are told as changes from them.
        """
        if not self._decoded:
            return 0
        first, end = self._decoded[0], self._span[1] - _ROUNDING
        stored = sum(first <= time < end for time in self._stored)
        return max(stored - len(self._decoded), 0) + self._num_corrupt

    def _from_key_frame(self) -> Iterator[VideoFrame]:
        place = self._origin + int(self._span[0] / self._second)
        self._container.seek(place, stream=self._stream)
        for packet in self._container.demux(self._stream):
            if packet.size and packet.pts is not None:
                self._stored.append(self._seconds(packet.pts))
            yield from packet.decode()

    def _seconds(self, pts: int) -> float:
        return (pts - self._origin) * self._second

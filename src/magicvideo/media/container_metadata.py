"""What video files state of themselves: where they end, and how long they last."""

from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

_HEADER, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def stated_end(path: Path) -> int | None:
    """Return how many bytes a Matroska or WebM file says that it has.

    None stands for a size of all ones, "not known", as in recordings of live streams.

    Raises:
        ValueError: If it does not begin as such a file does.
    """
    with path.open("rb") as file:
        for element in (_HEADER, _SEGMENT):
            head = file.read(5)
            if head[:4] != element or len(head) < 5 or not head[4]:
                raise ValueError("its Matroska header is not readable")
            more = 8 - head[4].bit_length()
            unknown = (1 << 7 * (more + 1)) - 1
            size = int.from_bytes(head[4:] + file.read(more), "big") & unknown
            end = file.tell() + size
            if element == _HEADER:
                file.seek(end)
    return None if size == unknown else end


def stated_duration(container: InputContainer, stream: VideoStream) -> float:
    """Return seconds, or 0 where a file does not say how long its pictures last."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if "DURATION" in stream.metadata:  # Matroska and WebM: 00:00:01.334000000
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return 0.0

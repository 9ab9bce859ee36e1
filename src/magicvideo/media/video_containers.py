"""MP4 and WebM through PyAV: the same frames and text give the same bytes."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from jaxtyping import UInt8

from magicvideo.errors import UserError
from magicvideo.media.video_reader import MAX_PIXELS

# yuv420p and an index at the front are what every browser plays; "bitexact" leaves out the random
# identifiers and library versions that would make two files of one video differ
_CODECS = {
    "mp4": (
        "libx264",
        # what looks ahead (B-frames, macroblock trees) does not always encode frames alike
        {"crf": "14", "preset": "slow", "bf": "0", "x264-params": "mbtree=0:rc-lookahead=0"},
        {"movflags": "+faststart", "fflags": "+bitexact"},
    ),
    "webm": (
        "libvpx-vp9",
        {"crf": "18", "b": "0", "row-mt": "0"},
        {"fflags": "+bitexact"},
    ),
}
# FFmpeg's SWS_ACCURATE_RND and SWS_FULL_CHR_H_INT, by number: PyAV 17 has no names for them
_ACCURATE = Interpolation.BICUBIC.value | 0x40000 | 0x2000


def write_container(
    path: Path, pixels: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float, text: str
) -> None:
    """Encode a video as H.264 in MP4 or VP9 in WebM, by the path's suffix.

    Colours follow BT.709 and the file says so. Frames are encoded as they come, and not kept.

    Args:
        path: File to write.
        pixels: RGB, one frame or more.
        fps: Frames a second.
        text: Comment of the file.

    Raises:
        UserError: If a side is odd, which these formats do not have.
    """
    codec, options, container_options = _CODECS[path.suffix.lower().removeprefix(".")]
    frames = iter(pixels)
    first = next(frames)
    height, width = first.shape[:2]
    check_sides(path, height, width)
    with av.open(str(path), "w", options=container_options) as container:
        container.metadata["comment"] = text
        stream = container.add_stream(
            codec, rate=Fraction(fps).limit_denominator(1000), options=options
        )
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # the bytes depend on how the work is shared
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        reformatter = VideoReformatter()
        for frame in chain([first], frames):
            picture = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_ACCURATE,
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def check_sides(path: Path, height: int, width: int) -> None:
    """Find out whether a video container stores frames of a size.

    Raises:
        UserError: If a side is odd.
    """
    if height % 2 or width % 2:
        raise UserError(
            f"Frames of {width}x{height} have an odd side, which {path.suffix} does not store; "
            "write .webp, .gif or PNG frames, or let `generate` enlarge by 2."
        )


def read_container_text(path: Path) -> str | None:
    """Return the comment of a video file, or None."""
    # opening decodes a little, so that a frame of any size would have to fit
    with av.open(str(path), options={"max_pixels": str(MAX_PIXELS)}) as container:
        # Matroska writes the names of its tags in capitals
        found = {key.lower(): value for key, value in container.metadata.items()}
    return found.get("comment")

"""Reading and writing videos: whole or as a stream of frames, with a text stored in the file."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
import torch
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from magicvideo.atomic_io import atomic_file, atomic_folder
from magicvideo.errors import ClipError, UserError
from magicvideo.limits import MAX_CLIP_BYTES
from magicvideo.media.images import (
    read_animation_text,
    write_gif,
    write_png,
    write_webp,
)
from magicvideo.media.outputs import FIRST_FRAME, check_output, format_of, translate_disk_errors
from magicvideo.media.video_reader import iter_frames, probe_video, read_comment
from magicvideo.shapes import check_finite

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


def write_pixels(
    pixels: Iterable[UInt8[np.ndarray, "height width 3"]],
    fps: float,
    text: str,
    path: Path,
    *,
    overwrite: bool = False,
) -> None:
    """Write frames and a text to a file; the suffix selects the format.

    The same frames and text give the same bytes. The file is written atomically. A GIF is
    encoded when all frames are there, the others frame by frame.

    Args:
        pixels: RGB, one frame or more.
        fps: Frames per second.
        text: ASCII that `read_text` returns.
        path: `.mp4`, `.webm`, `.webp` or `.gif`; a name without suffix is a folder of PNG frames.
        overwrite: Whether an existing output is replaced.

    Raises:
        UserError: If the output exists or cannot be written.
    """
    check_output(path, overwrite=overwrite)
    kind = format_of(path)
    with translate_disk_errors(path):
        if kind == "png":
            _write_folder(path, pixels, text)
            return
        with atomic_file(path, overwrite=overwrite) as partial:
            if kind == "gif":
                # its palette is that of all frames
                held = pixels if isinstance(pixels, np.ndarray) else np.stack(list(pixels))
                write_gif(partial, held, fps, text)
            elif kind == "webp":
                write_webp(partial, pixels, fps, text)
            else:
                _write_container(partial, pixels, fps, text)


def check_frames(path: Path, num_frames: int, height: int, width: int) -> None:
    """Check, before generating, that the format of an output supports the frames.

    Raises:
        UserError: If it stores no odd sides and one is odd, or is GIF, which is encoded when all
            frames are in memory, and they are more than `MAX_CLIP_BYTES`.
    """
    kind = format_of(path)
    if kind in ("mp4", "webm"):
        _check_even_sides(path, height, width)
    elif kind == "gif" and num_frames * height * width * 3 > MAX_CLIP_BYTES:
        raise UserError(
            f"{path} would have {num_frames} frames of {width}x{height} in memory at once, more "
            f"than {MAX_CLIP_BYTES:,} bytes; write .mp4, .webm, .webp or PNG frames."
        )


def to_uint8(
    frames: Float[Tensor, "f 3 h w"], enlarge: int = 1
) -> UInt8[np.ndarray, "f height width 3"]:
    """Return frames as bytes, enlarged by a whole factor with Lanczos' filter.

    Args:
        frames: Pixels in [-1, 1]; what lies outside is clamped.
        enlarge: The factor.

    Raises:
        UserError: If a number is not finite: black frames would hide what went wrong.
    """
    check_finite(frames, "The frames")
    scaled = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = rearrange(scaled, "f c h w -> f h w c").contiguous().cpu().numpy()
    if enlarge == 1:
        return pixels
    size = (pixels.shape[2] * enlarge, pixels.shape[1] * enlarge)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in pixels]
    return np.stack([np.asarray(picture) for picture in pictures])


def _write_container(
    path: Path, pixels: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float, text: str
) -> None:
    """Encode a video as H.264 in MP4 or VP9 in WebM, by the path's suffix.

    Colours follow BT.709 and the file says so. Frames are encoded as they come, and not kept.

    Args:
        path: File to write.
        pixels: RGB, one frame or more.
        fps: Frames per second.
        text: Comment of the file.

    Raises:
        UserError: If a side is odd, which these formats do not have.
    """
    kind = path.suffix.lower().removeprefix(".")
    codec, options, container_options = _CODECS[kind]
    frames = iter(pixels)
    first = next(frames)
    height, width = first.shape[:2]
    _check_even_sides(path, height, width)
    with av.open(f"file:{path}", "w", format=kind, options=container_options) as container:
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


def _check_even_sides(path: Path, height: int, width: int) -> None:
    """Check that a video format supports a frame size.

    Raises:
        UserError: If a side is odd.
    """
    if height % 2 or width % 2:
        raise UserError(
            f"Frames of {width}x{height} have an odd side, which {path.suffix} does not store; "
            "write .webp, .gif or PNG frames, or let `generate` enlarge by 2."
        )


def _write_folder(path: Path, pixels: Iterable[UInt8[np.ndarray, "h w 3"]], text: str) -> None:
    with atomic_folder(path, checksums=False) as partial:
        for index, frame in enumerate(pixels):
            write_png(partial / f"{index:03}.png", frame, text)


def read_text(path: Path) -> str | None:
    """Return the text in a file that `write_pixels` wrote, or a folder of PNG frames.

    Raises:
        UserError: If the file does not exist or it cannot be read.
    """
    source = path / FIRST_FRAME if path.is_dir() else path
    if not source.is_file():
        raise UserError(f"{source} does not exist.")
    by_pillow = source.suffix.lower() in (".gif", ".webp", ".png")
    try:
        return read_animation_text(source) if by_pillow else read_comment(source)
    except (ClipError, OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{source} cannot be read as a video: {error}.") from None


_WHITE = 255
_FULL_BATCH_AREA = 256 * 256  # pixels of a frame up to which a batch is full

Frame: TypeAlias = Float[Tensor, "3 h w"]
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class VideoStream:
    """A video of any length, whose frames are generated on demand.

    Attributes:
        frames: Pixels in [-1, 1]; can be iterated once.
        num_frames: Number of frames.
        height: Height of the frames in pixels.
        width: Likewise.
        fps: Frames per second.
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
    """Write a video while its frames are made; the suffix selects the format, as in `write_video`.

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

"""GIF, animated WebP and PNG frames through Pillow."""

import io
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int16, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from magicvideo.media.safe_image import open_limited
from magicvideo.media.video_reader import MAX_PIXELS

_TEXT_TAG = 270  # EXIF's ImageDescription
_PNG_KEY = "Comment"
_CLEAR = 255  # in the palette of a GIF: what was there stays
_BLOCK = 16  # pixels a side of what WebP codes at a time
_UNSEEN = 3  # levels of 255 by which a block may be off; coding it anew changes more
_LEAST_GIF_DELAY = 20  # milliseconds; players show a frame of less for 100
_ANIMATED, _WITH_EXIF, _WITH_ALPHA = 0x02, 0x08, 0x10  # bits of a WebP's header


def write_gif(path: Path, pixels: UInt8[np.ndarray, "f h w 3"], fps: float, text: str) -> None:
    """Write an endless GIF; one palette for all frames, so that plain areas do not flicker.

    Above 50 frames a second some are left out, since players slow down what is shown for less than
    20 milliseconds.
    """
    kept, durations = _gif_frames(len(pixels), fps)
    pixels = pixels[kept]
    frames, height, width, _ = pixels.shape
    montage = Image.fromarray(pixels.reshape(frames * height, width, 3))
    palette = montage.quantize(_CLEAR, method=Image.Quantize.MEDIANCUT)
    pictures: list[Image.Image] = []
    for frame in pixels:
        picture = Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        if pictures and picture.tobytes() == pictures[-1].tobytes():
            # Pillow would make one frame of two that are equal: this one shows the same
            picture.putpixel((0, 0), _CLEAR)
        pictures.append(picture)
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        loop=0,
        duration=durations,
        transparency=_CLEAR,
        comment=text.encode("ascii"),
        optimize=False,
    )


def write_webp(
    path: Path, pixels: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float, text: str
) -> None:
    """Write an endless animated WebP; a frame holds the blocks that changed since they were coded.

    Frames are put together here: Pillow's encoder of animations makes one of frames that differ by
    3 levels or less, and either loses slow changes or jumps where it codes a whole frame again.
    What is in memory until the last is there is coded.
    """
    frames = iter(pixels)
    first = next(frames)
    height, width = first.shape[:2]
    exif = Image.Exif()
    exif[_TEXT_TAG] = text
    header = bytes([_ANIMATED | _WITH_EXIF | _WITH_ALPHA, 0, 0, 0]) + _numbers(
        width - 1, height - 1
    )
    chunks = [_chunk(b"VP8X", header), _chunk(b"ANIM", bytes(6))]  # no background, no last round
    shown = np.full((height, width, 3), -256, np.int16)  # nothing yet, far from any colour
    for frame, duration in zip(chain([first], frames), _durations(fps, unit=1), strict=False):
        changed = _changed_blocks(frame, shown)
        shown[changed] = frame[changed]
        chunks.append(_chunk(b"ANMF", _webp_frame(frame, changed, duration)))
    chunks.append(_chunk(b"EXIF", exif.tobytes().removeprefix(b"Exif\0\0")))
    path.write_bytes(_chunk(b"RIFF", b"WEBP" + b"".join(chunks)))


def write_png(path: Path, frame: UInt8[np.ndarray, "h w 3"], text: str) -> None:
    """Write one frame, with the text beside it."""
    info = PngInfo()
    info.add_text(_PNG_KEY, text)
    Image.fromarray(frame).save(path, format="PNG", pnginfo=info)


def read_animation_text(path: Path) -> str | None:
    """Return the text in a GIF, WebP or PNG file, or None."""
    with open_limited(path, MAX_PIXELS) as picture:
        if picture.format == "WEBP":
            return picture.getexif().get(_TEXT_TAG)
        picture.load()
        text = picture.info.get(_PNG_KEY if picture.format == "PNG" else "comment")
    return text.decode("ascii", errors="replace") if isinstance(text, bytes) else text


def _durations(fps: float, unit: int) -> Iterator[int]:
    """Yield the milliseconds of one frame after the other, as many as are asked for."""
    start = 0
    for shown in count(1):
        # rounded where a frame ends, not frame by frame: the whole keeps its length
        end = round(1000 / unit * shown / fps) * unit
        yield end - start
        start = end


def _gif_frames(frames: int, fps: float) -> tuple[list[int], list[int]]:
    """Return the frames that a GIF shows, and for how many milliseconds each."""
    kept: list[int] = []
    shown: list[int] = []
    for index, duration in enumerate(islice(_durations(fps, unit=10), frames)):
        if shown and shown[-1] < _LEAST_GIF_DELAY:
            shown[-1] += duration
        else:
            kept.append(index)
            shown.append(duration)
    shown[-1] = max(shown[-1], _LEAST_GIF_DELAY)
    return kept, shown


def _changed_blocks(
    frame: UInt8[np.ndarray, "h w 3"], shown: Int16[np.ndarray, "h w 3"]
) -> Bool[np.ndarray, "h w"]:
    """Return where the blocks are that differ from what is shown."""
    blocks = np.abs(frame - shown).max(axis=2) > _UNSEEN
    height, width = blocks.shape
    for axis, side in enumerate((height, width)):
        firsts = np.arange(0, side, _BLOCK)
        blocks = np.logical_or.reduceat(blocks, firsts, axis=axis).repeat(_BLOCK, axis=axis)
    return blocks[:height, :width]


def _webp_frame(
    frame: UInt8[np.ndarray, "h w 3"], changed: Bool[np.ndarray, "h w"], duration: int
) -> bytes:
    """Return a frame that lies over the one before, clear where nothing changed."""
    mask = Image.fromarray(changed.astype(np.uint8) * 255)
    box = mask.getbbox() or (0, 0, 1, 1)
    picture = Image.fromarray(frame)
    picture.putalpha(mask)
    still = io.BytesIO()
    # "exact" keeps colours under clear blocks: the filter at a block's edge sees them
    picture.crop(box).save(still, format="WEBP", quality=90, method=4, exact=True)
    left, top, right, bottom = box
    place = _numbers(left // 2, top // 2, right - left - 1, bottom - top - 1, duration)
    coded = still.getvalue()[len("RIFFsizeWEBP") :]
    if coded.startswith(b"VP8X"):
        coded = coded[len(_chunk(b"VP8X", bytes(10))) :]
    return place + bytes([0]) + coded  # flags: lay it over, and leave it


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(3, "little") for value in values)

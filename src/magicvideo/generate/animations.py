"""GIF, animated WebP and PNG frames through Pillow."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from magicvideo.data.reader import MAX_PIXELS
from magicvideo.generate.limited import open_limited

_TEXT_TAG = 270  # EXIF's ImageDescription
_PNG_KEY = "Comment"


def write_gif(path: Path, pixels: UInt8[np.ndarray, "f h w 3"], fps: float, text: str) -> None:
    """Write an endless GIF; one palette for all frames, so that plain areas do not flicker."""
    frames, height, width, _ = pixels.shape
    montage = Image.fromarray(pixels.reshape(frames * height, width, 3))
    palette = montage.quantize(256, method=Image.Quantize.MEDIANCUT)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in pixels
    ]
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        loop=0,
        duration=_durations(frames, fps, unit=10),
        comment=text.encode("ascii"),
        optimize=False,
    )


def write_webp(path: Path, pixels: UInt8[np.ndarray, "f h w 3"], fps: float, text: str) -> None:
    """Write an endless animated WebP."""
    pictures = [Image.fromarray(frame) for frame in pixels]
    exif = Image.Exif()
    exif[_TEXT_TAG] = text
    pictures[0].save(
        path,
        format="WEBP",
        save_all=True,
        append_images=pictures[1:],
        loop=0,
        duration=_durations(len(pixels), fps, unit=1),
        quality=90,
        method=4,
        exif=exif.tobytes(),
    )


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


def _durations(num_frames: int, fps: float, unit: int) -> list[int]:
    # rounded where a frame ends, not frame by frame: the whole keeps its length
    ends = [round(1000 / unit * (index + 1) / fps) * unit for index in range(num_frames)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]

"""Image files, still and animated: opened with a limit of pixels, decoded and written."""

import io
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int16, UInt8
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from magicvideo.errors import ClipError, UserError
from magicvideo.limits import (
    MAX_ANIMATION_FRAMES,
    MAX_ANIMATION_PIXELS,
    MAX_FRAME_PIXELS,
    MAX_IMAGE_PIXELS,
)
from magicvideo.media.frame_display import check_frame_size, show_image


@contextmanager
def open_image_limited(
    file: Path | io.BytesIO, max_pixels: int, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Open a picture file as `PIL.Image.open` does; too many pixels are refused before decoding.

    Args:
        file: Its path, or its content.
        max_pixels: Pixels that a frame of it may have.
        formats: The names of the formats that are tried; None tries all of Pillow's.

    Raises:
        ValueError: If it has more pixels.
        OSError: If the file is missing or no picture.
    """
    with warnings.catch_warnings():
        # Pillow warns of a size of its own and refuses twice of it; here one limit holds. What it
        # says of damaged metadata is nothing that a viewer would show
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(file, formats=formats)
        except Image.DecompressionBombError:
            raise ValueError(f"it has more than {max_pixels:,} pixels") from None
        with picture:
            if picture.width * picture.height > max_pixels:
                raise ValueError(
                    f"it has {picture.width}x{picture.height} pixels, more than {max_pixels:,}"
                )
            yield picture


def load_image(image: Image.Image | str | Path) -> Image.Image:
    """Return a picture in RGB as viewers show it, transparent parts on white.

    Args:
        image: A file, or a picture that is open already, whose EXIF orientation counts as well.

    Raises:
        UserError: If the file is missing or no picture.
    """
    if isinstance(image, Image.Image):
        return _on_white(show_image(image))
    path = Path(image)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"The picture {image} is not a file but a folder, a pipe or a device.")
    try:
        with open_image_limited(path, MAX_IMAGE_PIXELS) as opened:
            return _on_white(show_image(opened))
    except FileNotFoundError:
        raise UserError(f"The picture {image} does not exist.") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{image} is not a picture that Pillow can read; try PNG or JPEG."
        ) from None
    except (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError) as error:
        raise UserError(f"The picture {image} cannot be read: {error}.") from None


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


_GIF = b"GIF8"
_TEXT_TAG = 270  # EXIF's ImageDescription
_PNG_KEY = "Comment"
_CLEAR = 255  # in the palette of a GIF: what was there stays
_BLOCK = 16  # pixels a side of what WebP codes at a time
_UNSEEN = 3  # levels of 255 by which a block may be off; coding it anew changes more
_MIN_GIF_DELAY = 20  # milliseconds; players show a frame of less for 100
_SLOWED_DELAY = 10  # milliseconds; browsers show a frame of this or less for `_DEFAULT_DELAY`
_DEFAULT_DELAY = 100
_ANIMATED, _WITH_EXIF, _WITH_ALPHA = 0x02, 0x08, 0x10  # bits of a WebP's header


def is_image_file(path: Path) -> bool:
    """Return whether a file is a GIF, WebP or PNG by its first bytes, whatever its name says."""
    with path.open("rb") as file:
        head = file.read(12)
    is_webp = head.startswith(b"RIFF") and head.endswith(b"WEBP")
    return is_webp or head.startswith((_GIF, b"\x89PNG\r\n"))


def read_animation(path: Path, max_frames: int) -> Generator[Image.Image, None, float]:
    """Yield the frames of an animation in mode RGBa (premultiplied); return frames per second.

    The file is a GIF, WebP or PNG. A frame of 10 milliseconds or less, or of no stated duration,
    counts 100, as in browsers. A GIF's bytes after its end mark are passed over, and the mark
    itself may be missing.

    Args:
        path: The file.
        max_frames: Frames that it may have.

    Raises:
        ClipError: If it is not an image, is damaged, truncated, or exceeds the limits.
    """
    max_frames = min(max_frames, MAX_ANIMATION_FRAMES)
    with _translate_errors():
        _check_gif(path, max_frames)
    durations: list[float] = []
    with _translate_errors():
        animation = Image.open(path, formats=("GIF", "WEBP", "PNG"))
    with animation:
        with _translate_errors():
            check_frame_size(*animation.size)
            num_frames = getattr(animation, "n_frames", 1)
        _check_total(num_frames, max_frames, *animation.size)
        # the first picture of some PNGs is for viewers that show no animation
        for number in range(1 if animation.info.get("default_image") else 0, num_frames):
            with _translate_errors():
                animation.seek(number)
                frame = show_image(animation).convert("RGBA").convert("RGBa")
                shown = float(animation.info.get("duration") or 0)
                durations.append(shown if shown > _SLOWED_DELAY else _DEFAULT_DELAY)
            yield frame
    return 1000 / float(np.mean(durations))


@contextmanager
def _translate_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ClipError(f"frames of more than {MAX_FRAME_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            raise ClipError("not a picture file") from None
        except (
            OSError,
            EOFError,
            SyntaxError,
            ValueError,
            IndexError,
            TypeError,
            MemoryError,
        ) as error:
            raise ClipError(f"damaged or cut off ({error})") from None


def _check_total(num_frames: int, max_frames: int, width: int, height: int) -> None:
    """Refuse animations that take long to decode."""
    if num_frames > max_frames:
        raise ClipError(f"more than {max_frames:,} frames; cut it into shorter clips")
    if num_frames * width * height > MAX_ANIMATION_PIXELS:
        raise ClipError(
            f"{num_frames} frames of {width}x{height}, more than {MAX_ANIMATION_PIXELS:,} pixels "
            "together; cut it into shorter clips or make a video of it"
        )


def _check_gif(path: Path, max_frames: int) -> None:
    """Go through the blocks of a file, if it is a GIF, and refuse one that was cut off.

    Nothing is decoded. Pillow would walk through a million frames before it says how many there
    are, and shows the part of a frame that is there.
    """
    with path.open("rb") as file:
        if file.read(4) != _GIF:
            return
        file.read(2)
        screen = _take(file, 7)
        width, height = (int.from_bytes(screen[at : at + 2], "little") for at in (0, 2))
        check_frame_size(width, height)
        _skip_palette(file, screen[4])
        num_frames = 0
        while (kind := file.read(1)) not in (b"", b";"):
            if kind == b"!":
                _take(file, 1)
                _skip_blocks(file)
            elif kind == b",":
                num_frames += 1
                _check_total(num_frames, max_frames, width, height)
                _skip_palette(file, _take(file, 9)[8])
                _take(file, 1)
                _skip_blocks(file)
            elif kind != b"\0":  # which some encoders leave between blocks
                raise ClipError("damaged or cut off (a block of a kind that GIF does not have)")


def _skip_palette(file: io.BufferedReader, flags: int) -> None:
    if flags & 0x80:
        _take(file, 3 << (flags & 7) + 1)


def _skip_blocks(file: io.BufferedReader) -> None:
    while size := _take(file, 1)[0]:
        _take(file, size)


def _take(file: io.BufferedReader, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ClipError("damaged or cut off (it ends inside a block)")
    return content


def write_gif(path: Path, pixels: UInt8[np.ndarray, "f h w 3"], fps: float, text: str) -> None:
    """Write an endless GIF; one palette for all frames, so that plain areas do not flicker.

    Above 50 frames per second some are left out, since players slow down what is shown for less
    than 20 milliseconds.
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
    """Write one frame, with the text next to it."""
    info = PngInfo()
    info.add_text(_PNG_KEY, text)
    Image.fromarray(frame).save(path, format="PNG", pnginfo=info)


def read_animation_text(path: Path) -> str | None:
    """Return the text in a GIF, WebP or PNG file, or None."""
    with open_image_limited(path, MAX_FRAME_PIXELS, ("GIF", "WEBP", "PNG")) as picture:
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
        if shown and shown[-1] < _MIN_GIF_DELAY:
            shown[-1] += duration
        else:
            kept.append(index)
            shown.append(duration)
    shown[-1] = max(shown[-1], _MIN_GIF_DELAY)
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

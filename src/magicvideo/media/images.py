"""Still pictures as input: opened with a limit of pixels, and shown as viewers show them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from magicvideo.errors import UserError
from magicvideo.limits import MAX_IMAGE_PIXELS
from magicvideo.media.frame_display import show_image


@contextmanager
def open_image_limited(
    path: Path, max_pixels: int, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Open a picture file as `PIL.Image.open` does; too many pixels are refused before decoding.

    Args:
        path: The file.
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
            picture = Image.open(path, formats=formats)
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
    try:
        with open_image_limited(Path(image), MAX_IMAGE_PIXELS) as opened:
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

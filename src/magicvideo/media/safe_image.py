"""Pictures from a disk that is not trusted: too many pixels are refused before they are decoded."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image


@contextmanager
def open_limited(path: Path, most_pixels: int) -> Iterator[Image.Image]:
    """Open a picture file as `PIL.Image.open` does.

    Raises:
        ValueError: If a frame of it has more pixels than that.
        OSError: If the file is missing or no picture.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of a size of its own and refuses twice of it; here one limit holds
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {most_pixels:,} pixels") from None
    with picture:
        if picture.width * picture.height > most_pixels:
            raise ValueError(
                f"it has {picture.width}x{picture.height} pixels, more than {most_pixels:,}"
            )
        yield picture

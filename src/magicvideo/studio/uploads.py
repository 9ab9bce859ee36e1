"""Uploaded pictures: limited before they are decoded, and kept without their metadata."""

import io
import warnings

from PIL import Image, ImageOps

from magicvideo.errors import UserError

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_LONGEST_SIDE = 2048  # pixels that are kept: no network here sees as many


def normalize_picture(content: bytes, *, most_pixels: int) -> bytes:
    """Return an uploaded picture as PNG without metadata, upright and of bounded size.

    Args:
        content: The upload, bounded in bytes by the server.
        most_pixels: Refused beyond it, before a pixel is decoded.

    Raises:
        UserError: If it is no picture, damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"The picture has more than {most_pixels:,} pixels.") from None
    except Exception:  # decoders of damaged files raise many kinds
        raise UserError("The upload is no picture; send PNG, JPEG or WebP.") from None
    with picture:
        if picture.width * picture.height > most_pixels:
            raise UserError(
                f"The picture has {picture.width}x{picture.height} pixels; at most "
                f"{most_pixels:,} are allowed."
            )
        try:
            picture.draft("RGB", (_LONGEST_SIDE, _LONGEST_SIDE))
            upright = ImageOps.exif_transpose(picture).convert("RGBA")
        except Exception:
            raise UserError("The picture is damaged or cut off.") from None
    upright.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    holder = io.BytesIO()
    Image.frombytes(upright.mode, upright.size, upright.tobytes()).save(holder, format="PNG")
    return holder.getvalue()

"""Uploads, limited before they are decoded: pictures, and videos that are continued."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from magicvideo.atomic_io import sha256
from magicvideo.errors import ClipError, UserError
from magicvideo.media.frame_display import show_image
from magicvideo.media.images import open_image_limited
from magicvideo.media.video_reader import VideoInfo, probe_video

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_LONGEST_SIDE = 2048  # pixels that are kept: no network here sees as many
_SUFFIXES = {  # by the first bytes of a file
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"\x1a\x45\xdf\xa3": ".webm",
}
_PICTURE_SUFFIX = ".png"
_MOST_CLIP_FRAMES = 5000
_MOST_FRAME_PIXELS = 1920 * 1088
_MOST_CLIP_PIXELS = 1 << 30  # of all frames: some seconds of decoding


@dataclass(frozen=True)
class Beginning:
    """What a video begins with: a picture, or another video that it continues.

    Attributes:
        path: A file of this machine.
        sha256: Of the file.
        clip: Size, rate and number of frames of a video; None for a picture.
    """

    path: Path
    sha256: str
    clip: VideoInfo | None


def read_beginning(path: Path) -> Beginning:
    """Return a stored upload as the start of a video; the suffix determines its kind.

    Raises:
        UserError: If it is a video that cannot be used.
    """
    is_picture = path.suffix == _PICTURE_SUFFIX
    return Beginning(path, sha256(path), None if is_picture else _probe_clip(path))


def video_suffix(content: bytes) -> str:
    """Return the suffix of a video or an animation, by its first bytes.

    Raises:
        UserError: If it is a picture.
    """
    suffix = file_suffix(content)
    if suffix == _PICTURE_SUFFIX:
        raise UserError("The upload is a picture; send the video to extend.")
    return suffix


def file_suffix(content: bytes) -> str:
    """Return the suffix of a file that magicvideo may have written, by its first bytes."""
    return next((end for start, end in _SUFFIXES.items() if content.startswith(start)), ".mp4")


def _probe_clip(path: Path) -> VideoInfo:
    try:
        return probe_video(path, _MOST_CLIP_FRAMES, _check_pixels)
    except ClipError as error:
        raise UserError(f"The video cannot be used: {error}.") from None


def _check_pixels(picture: Image.Image, num_frames: int) -> None:
    area = picture.width * picture.height
    if area > _MOST_FRAME_PIXELS or num_frames * area > _MOST_CLIP_PIXELS:
        raise UserError(
            f"The video has frames of {picture.width}x{picture.height}; it may have at "
            f"most {_MOST_FRAME_PIXELS:,} pixels a frame and {_MOST_CLIP_PIXELS:,} in all."
        )


def normalize_picture(content: bytes, *, most_pixels: int) -> bytes:
    """Return an uploaded picture as PNG without metadata, as viewers show it, of bounded size.

    Args:
        content: The upload, bounded in bytes by the server.
        most_pixels: Refused beyond it, before a pixel is decoded.

    Raises:
        UserError: If it is not a picture, is damaged or is too large.
    """
    try:
        with open_image_limited(io.BytesIO(content), most_pixels, _FORMATS) as picture:
            picture.draft("RGB", (_LONGEST_SIDE, _LONGEST_SIDE))
            upright = show_image(picture).convert("RGBA")
    except ValueError as error:
        raise UserError(f"The picture cannot be used: {error}.") from None
    except UnidentifiedImageError:
        raise UserError("The upload is not a picture; send PNG, JPEG or WebP.") from None
    except Exception:  # decoders of damaged files raise many kinds
        raise UserError("The picture is damaged or cut off.") from None
    upright.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    holder = io.BytesIO()
    Image.frombytes(upright.mode, upright.size, upright.tobytes()).save(holder, format="PNG")
    return holder.getvalue()

"""Writing a video with a text that travels in the file, and reading that text back."""

import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError
from magicvideo.media.animated_images import (
    read_animation_text,
    write_gif,
    write_png,
    write_webp,
)
from magicvideo.media.formats import FIRST_FRAME, format_of
from magicvideo.media.outputs import check_output, disk_in_words
from magicvideo.media.video_containers import check_sides, read_container_text, write_container
from magicvideo.media.video_reader import MAX_BYTES


def write_pixels(
    pixels: Iterable[UInt8[np.ndarray, "height width 3"]],
    fps: float,
    text: str,
    path: Path,
    *,
    overwrite: bool = False,
) -> None:
    """Write frames and a text that travels in the file; the suffix tells the format.

    The same frames and text give the same bytes. Nothing half-written is ever left.
    A GIF is encoded when all frames are there, the others frame by frame.

    Raises:
        UserError: If the output exists or cannot be written.
    """
    check_output(path, overwrite=overwrite)
    kind = format_of(path)
    with disk_in_words(path):
        if kind == "png":
            _write_folder(path, pixels, text)
            return
        with atomic_file(path) as partial:
            if kind == "gif":
                # its palette is that of all frames
                held = pixels if isinstance(pixels, np.ndarray) else np.stack(list(pixels))
                write_gif(partial, held, fps, text)
            elif kind == "webp":
                write_webp(partial, pixels, fps, text)
            else:
                write_container(partial, pixels, fps, text)


def check_frames(path: Path, num_frames: int, height: int, width: int) -> None:
    """Find out, before any work, whether the format of an output can hold frames.

    Raises:
        UserError: If it stores no odd sides and one is odd, or is GIF, which is encoded when all
            frames are in memory, and they are more than `MAX_BYTES`.
    """
    kind = format_of(path)
    if kind in ("mp4", "webm"):
        check_sides(path, height, width)
    elif kind == "gif" and num_frames * height * width * 3 > MAX_BYTES:
        raise UserError(
            f"{path} would have {num_frames} frames of {width}x{height} in memory at once, more "
            f"than {MAX_BYTES:,} bytes; write .mp4, .webm, .webp or PNG frames."
        )


def to_pixels(
    frames: Float[Tensor, "f 3 h w"], enlarge: int = 1
) -> UInt8[np.ndarray, "f height width 3"]:
    """Return frames as bytes, enlarged by a whole factor with Lanczos' filter."""
    scaled = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = rearrange(scaled, "f c h w -> f h w c").contiguous().cpu().numpy()
    if enlarge == 1:
        return pixels
    size = (pixels.shape[2] * enlarge, pixels.shape[1] * enlarge)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in pixels]
    return np.stack([np.asarray(picture) for picture in pictures])


def _write_folder(path: Path, pixels: Iterable[UInt8[np.ndarray, "h w 3"]], text: str) -> None:
    partial = path.parent / f".partial-{path.name[:50]}-{secrets.token_hex(4)}"
    old = partial.with_name(f"{partial.name}-old")
    try:
        partial.mkdir()
        for index, frame in enumerate(pixels):
            with atomic_file(partial / f"{index:03}.png") as file:
                write_png(file, frame, text)
        if path.exists():
            path.rename(old)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read_text(path: Path) -> str | None:
    """Return the text in a file that `write_pixels` wrote, or a folder of PNG frames.

    Raises:
        UserError: If there is no such file, or it cannot be read.
    """
    source = path / FIRST_FRAME if path.is_dir() else path
    if not source.is_file():
        raise UserError(f"{source} does not exist.")
    by_pillow = source.suffix.lower() in (".gif", ".webp", ".png")
    try:
        return read_animation_text(source) if by_pillow else read_container_text(source)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{source} cannot be read as a video: {error}.") from None

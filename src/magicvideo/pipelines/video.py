"""Generated videos: frames, together with the request that makes them again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

from magicvideo.errors import UserError
from magicvideo.media.video_io import read_text, to_uint8, write_pixels
from magicvideo.pipelines.request import Request, request_from_json


@dataclass(frozen=True)
class Video:
    """A finished video.

    Attributes:
        frames: Pixels in [-1, 1], on the CPU.
        request: What it was made from.
    """

    frames: Float[Tensor, "f 3 h w"]
    request: Request

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the video; the suffix tells the format, a name without one is a folder of PNG.

        Raises:
            UserError: If the path cannot be written, or exists and `overwrite` is False.
        """
        write_video(self.frames, self.request, Path(path), overwrite=overwrite)


@dataclass
class VideoOutput(BaseOutput):
    """The videos of one call, in the order of the prompts.

    Attributes:
        frames: By the call's `output_type`: lists of PIL images; an array `b f h w c` or a tensor
            `b f c h w` in [0, 1]; or latents `b f c h w`.
        videos: Frames in [-1, 1], each with its request; none if latents were asked for.
    """

    frames: Any
    videos: list[Video]


def write_video(
    frames: Float[Tensor, "f 3 h w"], request: Request, path: Path, *, overwrite: bool = False
) -> None:
    """Write frames and the request that makes them again; the suffix tells the format.

    The same request gives the same bytes. Nothing half-written is ever left.

    Args:
        frames: Pixels in [-1, 1].
        request: Gives frame rate and output scale, and travels in the file.
        path: `.mp4`, `.webm`, `.webp` or `.gif`; a name without suffix is a folder of PNG frames.
        overwrite: Whether an existing output is replaced.

    Raises:
        UserError: If the output exists or cannot be written.
    """
    pixels = to_uint8(frames, request.output_scale)
    write_pixels(pixels, request.video_fps, request.to_json(), path, overwrite=overwrite)


def read_request(path: Path) -> Request:
    """Return the request that made a file, or a folder of PNG frames.

    Raises:
        UserError: If there is no such file, or it holds no request.
    """
    text = read_text(path)
    request = None if text is None else request_from_json(text)
    if request is None:
        raise UserError(
            f"{path} does not say how it was made; it is not from magicvideo, or a program that "
            "copied it left that out."
        )
    return request

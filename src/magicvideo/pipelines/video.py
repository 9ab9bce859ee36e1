"""Generated videos and unfinished latents on disk, each stored with its request."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import BaseOutput
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError
from magicvideo.limits import MAX_LATENTS
from magicvideo.media.outputs import translate_disk_errors
from magicvideo.media.video_io import read_text, to_uint8, write_pixels
from magicvideo.pipelines.request import Request, request_from_json
from magicvideo.shapes import Latents, check_finite


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


LATENTS_SUFFIX = ".latents"
_LATENTS, _REQUEST = "latents", "request"


def latents_path(output: Path) -> Path:
    """Return where the latents of an unfinished output are kept: beside it."""
    return output.with_name(f"{output.name}{LATENTS_SUFFIX}")


def output_of(path: Path) -> tuple[Path, Path]:
    """Return an unfinished output and its latents, either of which may be named."""
    if path.name.endswith(LATENTS_SUFFIX) and path.is_file():
        return path.with_name(path.name.removesuffix(LATENTS_SUFFIX)), path
    return path, latents_path(path)


def write_latents(path: Path, latents: Latents, request: Request) -> None:
    """Keep the latents of a video, and the request that they answer.

    Raises:
        UserError: If the file cannot be written, or a number is not finite.
    """
    check_finite(latents, "The latents")
    metadata = {_REQUEST: request.to_json()}
    with translate_disk_errors(path), atomic_file(path) as partial:
        save_file({_LATENTS: latents.cpu().contiguous()}, partial, metadata=metadata)


def check_no_latents(output: Path) -> None:
    """Find out, before any work, that no unfinished video would lose its latents.

    Raises:
        UserError: If there are latents beside an output.
    """
    path = latents_path(output)
    if path.exists():
        raise UserError(
            f"{path} holds an unfinished video; finish it with `magicvideo generate "
            f"--resume {shlex.quote(str(output))}`, choose another name, or add --overwrite."
        )


def read_latents(path: Path) -> tuple[Request, Latents]:
    """Return what `write_latents` kept.

    Raises:
        UserError: If the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; there is nothing to continue from.")
    try:
        with safe_open(path, framework="pt") as file:
            request = request_from_json((file.metadata() or {}).get(_REQUEST, ""))
            latents = file.get_tensor(_LATENTS)
    except (SafetensorError, OSError):
        raise UserError(f"{path} holds no latents of a video; make the video anew.") from None
    if request is None:
        raise UserError(f"{path} does not say what it is; make the video anew.")
    if latents.ndim != 5 or not latents.is_floating_point() or latents.numel() > MAX_LATENTS:
        raise UserError(f"{path} holds no latents of a video; make the video anew.")
    check_finite(latents, f"The latents in {path}")
    return request, latents

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
        request: The request that generated it.
    """

    frames: Float[Tensor, "f 3 h w"]
    request: Request

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the video; the suffix selects the format, no suffix a folder of PNG files.

        Raises:
            UserError: If the path cannot be written, or exists and `overwrite` is False.
        """
        write_video(self.frames, self.request, Path(path), overwrite=overwrite)


@dataclass
class VideoOutput(BaseOutput):
    """The videos of one call, in the order of the prompts.

    Attributes:
        frames: Depending on `output_type`: lists of PIL images; an array `b f h w c` or a tensor `b
            f c h w` in [0, 1]; or latents `b f c h w`.
        videos: Frames in [-1, 1] with their requests; empty for `latent`.
    """

    frames: Any
    videos: list[Video]


def write_video(
    frames: Float[Tensor, "f 3 h w"], request: Request, path: Path, *, overwrite: bool = False
) -> None:
    """Write frames with their request; the suffix selects the format.

    The same request gives the same bytes. The file is written atomically.

    Args:
        frames: Pixels in [-1, 1].
        request: Request with frame rate and output scale; stored in the file.
        path: `.mp4`, `.webm`, `.webp` or `.gif`; without suffix, a folder of PNG frames.
        overwrite: Whether to replace an existing output.

    Raises:
        UserError: If the output exists or cannot be written.
    """
    pixels = to_uint8(frames, request.output_scale)
    write_pixels(pixels, request.video_fps, request.to_json(), path, overwrite=overwrite)


def read_request(path: Path) -> Request:
    """Read the request of a video file, or of a folder of PNG frames.

    Raises:
        UserError: If the file does not exist or contains no request.
    """
    text = read_text(path)
    request = None if text is None else request_from_json(text)
    if request is None:
        raise UserError(
            f"{path} contains no request; it was not made with magicvideo, or a program that "
            "copied it removed the request."
        )
    return request


LATENTS_SUFFIX = ".latents"
_LATENTS, _REQUEST = "latents", "request"


def latents_path(output: Path) -> Path:
    """Return the path of the latents of an unfinished output, next to it."""
    return output.with_name(f"{output.name}{LATENTS_SUFFIX}")


def output_of(path: Path) -> tuple[Path, Path]:
    """Return the paths of an unfinished output and of its latents, given either."""
    if path.name.endswith(LATENTS_SUFFIX) and path.is_file():
        return path.with_name(path.name.removesuffix(LATENTS_SUFFIX)), path
    return path, latents_path(path)


def write_latents(path: Path, latents: Latents, request: Request) -> None:
    """Write the latents of a video with their request.

    Raises:
        UserError: If the file cannot be written, or a value is not finite.
    """
    check_finite(latents, "The latents")
    metadata = {_REQUEST: request.to_json()}
    with translate_disk_errors(path), atomic_file(path) as partial:
        save_file({_LATENTS: latents.cpu().contiguous()}, partial, metadata=metadata)


def check_no_latents(output: Path) -> None:
    """Check, before generating, that no latents of an unfinished video would be lost.

    Raises:
        UserError: If there are latents of this output.
    """
    path = latents_path(output)
    if path.exists():
        raise UserError(
            f"{path} contains an unfinished video; finish it with `magicvideo generate "
            f"--resume {shlex.quote(str(output))}`, choose another name, or add --overwrite."
        )


def read_latents(path: Path) -> tuple[Request, Latents]:
    """Read a file of `write_latents`.

    Raises:
        UserError: If the file is missing, damaged or of another type.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; there is nothing to resume.")
    try:
        with safe_open(path, framework="pt") as file:
            request = request_from_json((file.metadata() or {}).get(_REQUEST, ""))
            latents = file.get_tensor(_LATENTS)
    except (SafetensorError, OSError):
        raise UserError(
            f"{path} contains no latents of a video; generate the video again."
        ) from None
    if request is None:
        raise UserError(f"{path} contains no request; generate the video again.")
    if latents.ndim != 5 or not latents.is_floating_point() or latents.numel() > MAX_LATENTS:
        raise UserError(f"{path} contains no latents of a video; generate the video again.")
    check_finite(latents, f"The latents in {path}")
    return request, latents

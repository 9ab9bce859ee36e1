"""Latents of an unfinished video on the disk, from which `--resume` continues."""

import shlex
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError
from magicvideo.limits import MAX_LATENTS
from magicvideo.media.outputs import translate_disk_errors
from magicvideo.pipelines.request import Request, request_from_json
from magicvideo.shapes import Latents, check_finite

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

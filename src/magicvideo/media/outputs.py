"""Whether an output can be written, found out before any work, and what a disk answers."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magicvideo.errors import UserError
from magicvideo.media.formats import format_of

_FRAME_NAME = re.compile(r"\d{3,}\.png")


def check_output(path: Path, *, overwrite: bool) -> None:
    """Find out, before any work, whether an output can be written.

    Raises:
        UserError: If its format is unknown, its folder is missing or not writable, or it exists.
    """
    is_folder = format_of(path) == "png"
    check_writable(path.parent)
    if path.is_dir() and not is_folder:
        raise UserError(f"{path} is a folder; choose another name.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name, or add --overwrite.")
    if path.exists() and is_folder and not _holds_only_frames(path):
        raise UserError(f"{path} exists and is no folder of frames alone; choose another name.")


def check_writable(folder: Path) -> None:
    """Find out whether files can be made in a folder.

    Raises:
        UserError: If it is missing or not writable.
    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist; make it first.")
    with disk_in_words(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def disk_in_words(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one sentence.

    Raises:
        UserError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path} cannot be written ({reason}); make room or choose another place."
        ) from None


def _holds_only_frames(path: Path) -> bool:
    return path.is_dir() and all(_FRAME_NAME.fullmatch(child.name) for child in path.iterdir())

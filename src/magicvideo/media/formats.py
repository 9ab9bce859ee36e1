"""The file formats: their suffixes, and where each keeps the text of the request."""

from pathlib import Path
from typing import Literal, TypeAlias, get_args

from magicvideo.errors import UserError

Format: TypeAlias = Literal["mp4", "webm", "webp", "gif", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
FIRST_FRAME = "000.png"


def format_of(path: Path, chosen: str | None = None) -> Format:
    """Return the format of an output.

    Args:
        path: A file whose suffix tells the format; a folder, for PNG frames, has no suffix.
        chosen: The format by name, where the caller gave one.

    Raises:
        UserError: If the suffix is unknown, or is not that of the chosen format.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if chosen is not None and chosen not in FORMATS:
        raise UserError(f"The format {chosen!r} is not known; choose one of {', '.join(FORMATS)}.")
    if chosen == "png" or (chosen is None and not suffix):
        if suffix:
            raise UserError(f"PNG frames go into a folder; give {path} a name without a suffix.")
        return "png"
    if suffix == "png":
        raise UserError(
            f"{path} can hold one frame only; for PNG frames name a folder, without a suffix."
        )
    for name in FORMATS:
        if suffix == name and chosen in (None, name):
            return name
    if chosen is not None:
        raise UserError(f"{path} does not end in .{chosen}, the suffix of the chosen format.")
    raise UserError(
        f"{path} ends in .{suffix}, which is no format here; end it in "
        f"{', '.join('.' + name for name in FORMATS if name != 'png')}, or in nothing for a folder "
        "of PNG frames."
    )

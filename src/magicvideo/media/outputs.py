"""Output paths: formats by suffix, names from prompts or patterns, and early checks.

What can fail at the end is tried at the start: the folder, the name's length, and whether the
output exists.
"""

import errno
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from magicvideo.errors import UserError

Format: TypeAlias = Literal["mp4", "webm", "webp", "gif", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
FIRST_FRAME = "000.png"

_FIELDS = ("index", "slug", "seed")
_FRAME_NAME = re.compile(r"\d{3,}\.png")


def format_of(path: Path, chosen: str | None = None) -> Format:
    """Return the format of an output.

    Args:
        path: A file, whose suffix selects the format, or a folder of PNG frames, without a suffix.
        chosen: The format by name, where the caller gave one.

    Raises:
        UserError: If the suffix is unknown, or is not that of the chosen format.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if chosen is not None and chosen not in FORMATS:
        raise UserError(f"Unknown format {chosen!r}; choose one of {', '.join(FORMATS)}.")
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
        f"{path} ends in .{suffix}, which is not a supported format; use "
        f"{', '.join('.' + name for name in FORMATS if name != 'png')}, or in nothing for a folder "
        "of PNG frames."
    )


def slugify(prompt: str) -> str:
    """Return a short name of letters, digits and hyphens; it can lead to no other folder."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall(r"[a-z0-9]+", plain))
    return words[:60].rstrip("-") or "video"


def sibling_path(video: Path, made: str) -> Path:
    """Return a name for what is made of a video: next to it, in its format or else as MP4."""
    suffix = video.suffix.lower()
    if suffix.removeprefix(".") not in FORMATS or suffix == ".png":
        suffix = ".mp4"
    return video.with_name(f"{video.stem}-{made}{suffix}")


def ensure_encodable_size(path: Path, height: int, width: int) -> Path:
    """Return a made name, as WebP where the format of the name has no odd sides and one is odd."""
    is_odd = height % 2 or width % 2
    return path.with_suffix(".webp") if is_odd and format_of(path) in ("mp4", "webm") else path


def output_paths(
    output: Path | None, names: list[str], seeds: list[int], chosen: str | None
) -> list[Path]:
    """Return where each video goes; all are of one format.

    Args:
        output: None for made names in the present folder; a file; a folder (one that exists or,
            for several videos, a new one) for made names in it; for PNG frames of one video their
            folder; or a pattern with {index}, {slug} and {seed}, and {{ and }} for braces. A
            leading ~ is the home folder.
        names: What each video is called after, its prompt.
        seeds: Seed of each video.
        chosen: Format by name, or None to tell it by the suffix (MP4 for made names).

    Raises:
        UserError: If the format is unknown, a field of the pattern is, or two names are the same.
    """
    pattern = _pattern(None if output is None else expand_home(output), len(names), chosen)
    digits = len(str(len(names)))
    paths = []
    for index, (name, seed) in enumerate(zip(names, seeds, strict=True), start=1):
        values = {"index": f"{index:0{digits}}", "slug": slugify(name), "seed": str(seed)}
        path = Path(_fill(pattern, values))
        if chosen is None and not path.suffix:
            raise UserError(
                f"{path} has no suffix; end it in .mp4, .webm, .webp or .gif, or add --format png "
                "for a folder of frames."
            )
        format_of(path, chosen)
        if path in paths:
            raise UserError(
                f"Several videos would be {path}; put {{index}}, {{slug}} or {{seed}} into "
                "--output, or name a folder."
            )
        paths.append(path)
    return paths


def _pattern(output: Path | None, count: int, chosen: str | None) -> str:
    ending = "" if chosen == "png" else f".{chosen or 'mp4'}"
    if output is None:
        return "{slug}-{seed}" + ending
    if "{" in str(output):
        return str(output)
    if count > 1 and (output.is_dir() or not output.suffix):
        return f"{output}/{{index}}-{{slug}}{ending}"
    if output.is_dir() and chosen != "png":
        return f"{output}/{{slug}}-{{seed}}{ending}"
    return str(output)


def _fill(pattern: str, values: dict[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in values:
            allowed = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise UserError(
                f"The output pattern holds {match[0]}; it can hold {allowed}, and {{{{ or }}}} for "
                "a brace."
            )
        return values[match[1]]

    return re.sub(r"\{\{|\}\}|\{(\w*)\}", value_of, pattern)


def check_output(path: Path, *, overwrite: bool, longest_suffix: str = "") -> None:
    """Check, before generating, that an output can be written.

    Args:
        path: The output.
        overwrite: Whether it may exist.
        longest_suffix: What is put after its name for files next to it, which must fit as well.

    Raises:
        UserError: If its format is unknown, its folder is missing or not writable, its name is too
            long, or it exists.
    """
    is_folder = format_of(path) == "png"
    check_writable(path.parent)
    _check_name(path, longest_suffix)
    if path.is_dir() and not is_folder:
        raise UserError(f"{path} is a folder; choose another name.")
    if os.path.lexists(path) and not overwrite:  # a link to nothing is there, too
        raise UserError(f"{path} exists; choose another name, or add --overwrite.")
    if path.exists() and is_folder and not _holds_only_frames(path):
        raise UserError(f"{path} exists and is not a folder of frames; choose another name.")


def check_writable(folder: Path) -> None:
    """Check that files can be created in a folder.

    Raises:
        UserError: If it is missing or not writable.
    """
    if not folder.is_dir():
        if str(folder).startswith("~"):
            raise UserError(
                f"The folder {folder} does not exist; give the full path of the home folder."
            )
        raise UserError(f"The folder {folder} does not exist; create it first.")
    with translate_disk_errors(folder), tempfile.TemporaryFile(dir=folder):
        pass


def expand_home(path: Path) -> Path:
    """Return a path whose leading ~ or ~user is a home folder; shells leave it in `--output=~`."""
    try:
        return path.expanduser()
    except RuntimeError:  # no such user exists, so it is a name
        return path


def _check_name(path: Path, longest_suffix: str) -> None:
    longest = path.with_name(path.name + longest_suffix)
    try:
        os.lstat(longest)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"The name {path.name!r:.60}{'...' if len(path.name) > 60 else ''} cannot be used "
            f"({reason}, {len(os.fsencode(longest.name))} bytes with what is kept next to it); "
            "choose a shorter name."
        ) from None


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Report disk errors in one sentence.

    Raises:
        UserError: Instead of an `OSError`.
    """
    try:
        yield
    except FileExistsError:
        raise UserError(f"{path} exists; choose another name, or add --overwrite.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "make room or choose another place" if is_full else "choose another place"
        raise UserError(f"{path} cannot be written ({reason}); {advice}.") from None


def _holds_only_frames(path: Path) -> bool:
    return path.is_dir() and all(_FRAME_NAME.fullmatch(child.name) for child in path.iterdir())

"""Where data are: a folder, or a URL that fsspec opens."""

from pathlib import Path
from typing import TypeAlias

Location: TypeAlias = Path | str
"""A folder on this machine as a path, anything else as a URL."""

_FILE = "file://"


def as_location(value: object) -> Location:
    """Return what a setting names: a path, or a URL such as `s3://bucket/folder`.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("a path or a URL is wanted")
    if value.startswith(_FILE):
        return Path(value.removeprefix(_FILE))
    return value if "://" in value else Path(value)

"""The files of a source: which there are, how they are shown, and where a listed video lies."""

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

from magicvideo.media.video_reader import PICTURE_SUFFIXES, VIDEO_SUFFIXES

SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES


def walk(folder: Path) -> list[Path]:
    """Return all files of a folder and its subfolders but hidden ones, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def is_utf8(text: str) -> bool:
    """Tell whether a text can be written into a manifest."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def show(path: Path, folder: Path) -> str:
    """Return a file's path inside its source, as it can be printed."""
    return os.fsencode(os.path.relpath(path, folder)).decode("utf-8", "backslashreplace")


def contents(folder: Path, most: int = 5) -> str:
    """Return "it holds a, b, c", for messages that say what was looked for and not found."""
    names = sorted(show(path, folder) for path in folder.iterdir())
    if not names:
        return "it is empty"
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"it holds {', '.join(names[:most])}{more}"


class VideoIndex:
    """The videos of a folder and its subfolders, found by the names that lists give them.

    Names of a list are looked up and never become paths, so none leads out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._by_stem = defaultdict[str, list[Path]](list)
        self._unasked = set[Path]()
        for path in walk(folder):
            if path.suffix.lower() in SUFFIXES and is_utf8(str(path)):
                self._by_stem[path.stem].append(path)
                self._unasked.add(path)

    def find(self, name: str) -> Path | None:
        """Return the video of a name, such as "a", "a.mp4" or "part/a"; the first of several.

        A folder in the name must be the video's; another suffix will do, as of a converted file.
        """
        wanted = PurePosixPath(name)
        stem = wanted.stem if wanted.suffix.lower() in SUFFIXES else wanted.name
        folders = wanted.parent.parts
        found = [
            path
            for path in self._by_stem.get(stem, ())
            if not folders or path.parent.parts[-len(folders) :] == folders
        ]
        self._unasked.difference_update(found)
        return min(found, key=lambda path: (path.name != wanted.name, path), default=None)

    def unasked(self) -> list[Path]:
        """Return the videos that no name has led to, in order."""
        return sorted(self._unasked)

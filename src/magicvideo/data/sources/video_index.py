"""The files of a source, and the one rule by which names in lists are compared with theirs."""

import os
import re
import unicodedata
from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from magicvideo.errors import UserError
from magicvideo.media.video_reader import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from magicvideo.printable import printable

SUFFIXES = VIDEO_SUFFIXES | ANIMATION_SUFFIXES

MAX_FILES = 5_000_000
"""Most files of one source; a link to a whole disk is a mistake."""

_ABSOLUTE = re.compile(r"/|\\\\|[A-Za-z]:[\\/]")


def list_files(folder: Path) -> list[Path]:
    """Return all files of a folder and its subfolders except hidden ones, in order.

    Links are followed. A folder that can be reached in several ways is listed once, and by its own
    path where it lies in `folder`. Links to a folder that contains `folder`, and folders that
    cannot be opened, are listed themselves.

    Raises:
        UserError: If there are more than `MAX_FILES`.
    """
    found: list[Path] = []
    visited = {_identity(parent) for parent in folder.resolve().parents}
    waiting, linked = deque([folder]), deque[Path]()
    while waiting or linked:
        # own folders first, so that a link to one of them adds nothing
        here = waiting.popleft() if waiting else linked.popleft()
        try:
            identity = _identity(here)
            if identity in visited:
                if here.resolve() in folder.resolve().parents:
                    found.append(here)
                continue
            visited.add(identity)
            entries = [Path(entry) for entry in os.scandir(here)]
        except OSError:
            found.append(here)
            continue
        for path in entries:
            if path.name.startswith("."):
                continue
            if not path.is_dir():
                found.append(path)
            else:
                (linked if path.is_symlink() else waiting).append(path)
        if len(found) > MAX_FILES:
            raise UserError(f"{folder} holds more than {MAX_FILES:,} files; name a smaller folder.")
    return sorted(found)


def is_utf8(text: str) -> bool:
    """Return whether a text can be written into a manifest."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def display_path(path: Path, folder: Path) -> str:
    """Return a file's path inside its source in a form that is safe to print."""
    return printable(os.path.relpath(path, folder))


def summarize_folder(folder: Path, most: int = 5) -> str:
    """Return "it holds a, b, c", for messages about something that was not found."""
    names = sorted(display_path(path, folder) for path in folder.iterdir())
    if not names:
        return "it is empty"
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"it holds {', '.join(names[:most])}{more}"


def name_key(name: str) -> str:
    r"""Return what all spellings of one file name share.

    Composed and decomposed letters (a Mac writes "é" as two), capitals, `/` and `\`, and dots in a
    path make no difference: the key of `Sub\.\CAFÉ.mp4` is `sub/café.mp4`.
    """
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    parts: list[str] = []
    for part in text.replace("\\", "/").split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


class VideoIndex:
    """The files of a folder, found by the names that lists give them.

    Names are looked up and never become paths, so that none leads to a file outside the folder.

    Attributes:
        folder: The source.
        files: All files, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, list_files(folder)
        self._by_key = defaultdict[str, list[Path]](list)
        self._by_stem = defaultdict[str, list[Path]](list)
        self._unreferenced = set[Path]()
        for path in self.files:
            self._by_key[name_key(self._name(path))].append(path)
            if path.suffix.lower() in SUFFIXES and is_utf8(str(path)):
                self._by_stem[name_key(path.stem)].append(path)
                self._unreferenced.add(path)

    def find(self, name: str, base: Path | None = None) -> Path | None:
        """Return the file that a list names by its path; None if there is none.

        Of files whose names differ in capitals or composition alone, the one spelt like `name` is
        taken. An absolute path is matched by its longest end that is a file here, so that a list
        from another machine can be read.

        Args:
            name: A path as the list has it.
            base: The folder, within the source, that relative paths start from; the source itself
                by default.
        """
        start = os.path.relpath(base or self.folder, self.folder)
        relative = name if _ABSOLUTE.match(name) else f"{start}/{name}"
        parts = name_key(relative).split("/")
        ends = range(len(parts)) if relative is name else (0,)
        for first in ends:
            if found := self._by_key.get("/".join(parts[first:])):
                path = _nearest(found, name)
                self._unreferenced.discard(path)
                return path
        return None

    def find_video(self, name: str) -> Path | None:
        """Return the video of a name, such as "a", "a.mp4" or "part/a"; the first of several.

        A folder in the name must be the video's, but for the first ones of an absolute path; the
        suffix may differ, as of a converted file.
        """
        wanted = PurePosixPath(name_key(name))
        stem = wanted.stem if wanted.suffix in SUFFIXES else wanted.name
        folders, named = wanted.parent.parts, self._by_stem.get(stem, [])
        found = [path for path in named if self._parents(path)[-len(folders) :] == folders]
        if not folders:
            found = named
        elif not found and _ABSOLUTE.match(name):
            ends = [folders[first:] for first in range(1, len(folders))]
            matches = ([p for p in named if self._parents(p)[-len(end) :] == end] for end in ends)
            found = next(filter(None, matches), named)
        self._unreferenced.difference_update(found)
        if not found:
            return None
        with_suffix = [path for path in found if name_key(path.name) == wanted.name]
        return _nearest(with_suffix or found, name)

    def unreferenced(self) -> list[Path]:
        """Return the videos that no name has led to, in order."""
        return sorted(self._unreferenced)

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.folder)

    def _parents(self, path: Path) -> tuple[str, ...]:
        return PurePosixPath(name_key(self._name(path))).parent.parts


def _nearest(paths: Iterable[Path], name: str) -> Path:
    """Return the path that is spelt like a name, or the first."""
    posix = name.replace("\\", "/")
    composed = unicodedata.normalize("NFC", posix)

    def differs(path: Path) -> tuple[bool, bool, Path]:
        spelt = path.as_posix()
        is_composed = unicodedata.normalize("NFC", spelt).endswith(composed)
        return not spelt.endswith(posix), not is_composed, path

    return min(paths, key=differs)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino

"""Results behind fsspec: a local folder by default, any object store by its URL.

Names come from job ids alone, never from a request's text. A file is written under another name and
moved, so that a name that exists is whole.
"""

import contextlib
import io
import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from magicvideo.errors import UserError

_NAME = re.compile(r"[a-z0-9_]+(-[a-z]+)?\.[a-z0-9]+")
PREVIEW = "preview.webp"
_PARTIAL, _UPLOAD = "partial-", "upload_"
_DATED = re.compile(r"(?:partial-|upload_)(\d+)[-_]")
_PARTIAL_NAME = re.compile(r"partial-\d+-[0-9a-f]{16}\.bin")
_CHUNK = 1 << 18
_ABANDONED = 3600.0  # seconds after which nobody writes a partial file any more


class FileStore:
    """A flat set of files.

    Args:
        url: Folder, or URL such as `s3://bucket/studio`.

    Raises:
        UserError: If the place cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = url_to_fs(url)
            self._fs.makedirs(self._root, exist_ok=True)
        except (ValueError, ImportError, OSError) as error:
            raise UserError(
                f"Results cannot be kept at {url} ({error}); name another place with --files."
            ) from None
        self.is_local = "file" in _protocols(self._fs)

    def put(self, name: str, source: Path | bytes) -> int:
        """Store a file whole, and return its size.

        Raises:
            OSError: If it cannot be written.
        """
        target, partial = self._path(name), self._path(_partial_name())
        try:
            with self._open_source(source) as reader, self._fs.open(partial, "wb") as writer:
                size = 0
                while chunk := reader.read(_CHUNK):
                    size += writer.write(chunk)
                if self.is_local:
                    writer.flush()
                    os.fsync(writer.fileno())
            self._fs.mv(partial, target)
        except BaseException:
            if self._fs.exists(partial):
                self._fs.rm(partial)
            raise
        return size

    def copy(self, source: str, target: str) -> None:
        """Store a file again under a second name."""
        partial = self._path(_partial_name())
        self._fs.copy(self._path(source), partial)
        self._fs.mv(partial, self._path(target))

    def exists(self, name: str) -> bool:
        """Tell whether a file is there."""
        return bool(self._fs.exists(self._path(name)))

    def size(self, name: str) -> int:
        """Return a file's size in bytes.

        Raises:
            FileNotFoundError: If it is not there.
        """
        return int(self._fs.size(self._path(name)))

    def read(self, name: str) -> bytes:
        """Return a small file's content.

        Raises:
            FileNotFoundError: If it is not there.
        """
        return bytes(self._fs.cat_file(self._path(name)))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, and without, `end`."""
        return bytes(self._fs.cat_file(self._path(name), start=start, end=end))

    def fetch(self, name: str, target: Path) -> Path:
        """Write a file to the local disk."""
        self._fs.get_file(self._path(name), str(target))
        return target

    def local_path(self, name: str) -> Path | None:
        """Return where a file is on this machine's disk, or None where it is elsewhere."""
        return Path(self._path(name)) if self.is_local else None

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; missing files are ignored."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

    def names(self) -> list[str]:
        """Return the names of all files."""
        found = self._fs.ls(self._root, detail=False, refresh=True)
        return sorted(str(path).rsplit("/", 1)[-1] for path in found)

    def remove_abandoned(self, used: Iterable[str]) -> None:
        """Remove partial files and unused uploads that are an hour old or older.

        Args:
            used: Names of the uploads that jobs refer to.
        """
        limit, kept = time.time() - _ABANDONED, set(used)
        for name in self.names():
            found = _DATED.match(name)
            if found and float(found[1]) < limit and name not in kept:
                self.remove([name])

    def _path(self, name: str) -> str:
        if not (_NAME.fullmatch(name) or _PARTIAL_NAME.fullmatch(name)):
            raise ValueError(f"{name!r} is not the name of a stored file")
        return f"{self._root}/{name}"

    def _open_source(self, source: Path | bytes) -> io.BufferedReader | io.BytesIO:
        return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def result_names(job_id: str, suffix: str) -> dict[str, str]:
    """Return the names under which a job's results are stored, by variant."""
    return {
        "video": f"{job_id}.{suffix}",
        "thumbnail": f"{job_id}-thumbnail.webp",
        "spritesheet": f"{job_id}-spritesheet.jpg",
    }


def file_names(job_id: str) -> list[str]:
    """Return every name under which something of a job may be stored."""
    videos = [f"{job_id}.{suffix}" for suffix in ("mp4", "webm", "webp", "gif")]
    others = [name for variant, name in result_names(job_id, "mp4").items() if variant != "video"]
    kept = [f"{job_id}-{stage}.safetensors" for stage in ("keyframes", "interpolation")]
    return [*videos, *others, *kept, f"{job_id}-{PREVIEW}"]


def upload_name(suffix: str) -> str:
    """Return a new name for an upload of a kind, such as `.png`."""
    return f"{_UPLOAD}{int(time.time())}_{secrets.token_hex(16)}{suffix}"


def _partial_name() -> str:
    return f"{_PARTIAL}{int(time.time())}-{secrets.token_hex(8)}.bin"


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)

"""Shards as files on this machine: in place where the folder is here, else fetched whole and kept.

Of what was fetched only the shards used last are kept. Processes and runs may share a cache: a lock
for each shard lets one fetch what the others wait for.
"""

import hashlib
import os
import queue
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import fsspec
from filelock import FileLock, Timeout

from magicvideo.atomic_io import atomic_file, remove_partial
from magicvideo.data.paths import Location
from magicvideo.data.shards.index import Shard
from magicvideo.data.shards.tar_shard import ShardFile
from magicvideo.errors import UserError

_PIECE = 1 << 22  # bytes that are fetched at a time
_LOCK = ".lock"


class ShardFiles:
    """Opens shards, and fetches them where they are elsewhere.

    Args:
        location: Folder or URL of the shards.
        shards: What the index says of each, by number.
        cache: Folder for fetched shards of this data set.
        keep: How many are open, and how many are in the cache.
    """

    def __init__(
        self, location: Location, shards: tuple[Shard, ...], cache: Path, keep: int
    ) -> None:
        self.location, self.shards, self.cache, self.keep = location, shards, cache, keep
        self._opened: OrderedDict[int, ShardFile] = OrderedDict()
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._fetcher: threading.Thread | None = None

    def open(self, number: int) -> ShardFile:
        """Return a shard.

        Raises:
            UserError: If it is missing, cut off or damaged, or cannot be fetched.
        """
        if number not in self._opened:
            shard = self.shards[number]
            if isinstance(self.location, Path):
                self._opened[number] = ShardFile(self.location / shard.file, shard)
            else:
                self._opened[number] = self._fetch(shard)
            if len(self._opened) > self.keep:
                self._opened.popitem(last=False)
        self._opened.move_to_end(number)
        return self._opened[number]

    def expect(self, numbers: list[int]) -> None:
        """Fetch shards in the background that will be opened soon."""
        if isinstance(self.location, Path):
            return
        for number in numbers:
            self._wanted.put(number)
        if self._fetcher is None:
            # a daemon: the end of a run does not wait for what it will not read
            self._fetcher = threading.Thread(target=self._fetch_wanted, daemon=True)
            self._fetcher.start()

    def _fetch_wanted(self) -> None:
        while True:
            # whoever opens the shard tries again, and says what is wrong
            with suppress(UserError, OSError):
                self._fetch(self.shards[self._wanted.get()])

    def _fetch(self, shard: Shard) -> ShardFile:
        self.cache.mkdir(parents=True, exist_ok=True)
        target = self.cache / shard.file
        with FileLock(f"{target}{_LOCK}"):
            if not target.is_file() or target.stat().st_size != shard.bytes:
                remove_partial(self.cache, target.stem)
                with atomic_file(target) as partial:
                    self._download(shard, partial)
            os.utime(target)
            opened = ShardFile(target, shard)
        self._remove_oldest()
        return opened

    def _download(self, shard: Shard, partial: Path) -> None:
        """Copy a shard and compare it with the index."""
        digest = hashlib.sha256()
        source = f"{self.location}/{shard.file}"
        try:
            with fsspec.open(source, "rb") as remote, partial.open("wb") as local:
                while piece := remote.read(_PIECE):
                    digest.update(piece)
                    local.write(piece)
        except FileNotFoundError:
            raise UserError(f"The shard {source} is missing; copy it there again.") from None
        if digest.hexdigest() != shard.sha256:
            raise UserError(
                f"The shard {source} is cut off or changed ({partial.stat().st_size:,} bytes, and "
                f"its index says {shard.bytes:,}); copy it there again."
            )

    def _remove_oldest(self) -> None:
        fetched = sorted(self.cache.glob("*.tar"), key=_last_used, reverse=True)
        for path in fetched[self.keep :]:
            # one that another process holds is in use after all
            with suppress(Timeout), FileLock(f"{path}{_LOCK}", timeout=0):
                path.unlink(missing_ok=True)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0

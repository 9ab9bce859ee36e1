"""One shard: a tar file whose bytes depend on its members alone, and arrays read out of it."""

import math
import tarfile
from collections.abc import Iterable
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from magicvideo.data.shards.index import SampleNote, Shard
from magicvideo.errors import UserError

ARRAYS = ("latents", "embeddings", "tokens")
_LONGEST_HEADER = 512  # bytes of what stands before the numbers in an .npy file, and more
_MEND = "copy it again, or delete it and run `magicvideo data encode` again."


def sample_key(place: int, variant: int) -> str:
    """Return the key of a sample: the clip's place in the shard, and which variant of it."""
    return f"{place:05d}-{variant:02d}"


def write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write named contents as a tar file with no date and no owner."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, BytesIO(content))


def array_bytes(values: NDArray[np.float16]) -> bytes:
    """Return an array as an .npy file."""
    file = BytesIO()
    np.lib.format.write_array(file, values, version=(1, 0), allow_pickle=False)
    return file.getvalue()


class ShardFile:
    """A shard on this machine, mapped into memory.

    Args:
        path: Where it is.
        shard: What the index says of it.

    Raises:
        UserError: If it is missing, cut off or damaged. It is named.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        check_size(path, shard)
        self.path = path
        self._places = _scan(path)
        keys: dict[str, list[str]] = {}
        for name in self._places:
            if name.endswith(".json"):
                key = name.removesuffix(".json")
                keys.setdefault(key.partition("-")[0], []).append(key)
        self.clips = [keys[place] for place in sorted(keys)]
        """The keys of the variants of each clip."""
        if len(self.clips) != shard.clips:
            raise self._damaged()
        with path.open("rb") as file:
            self._mapped = mmap(file.fileno(), 0, access=ACCESS_READ)

    def note(self, key: str) -> SampleNote:
        """Return what the shard says of a sample.

        Raises:
            UserError: If it is damaged.
        """
        start, size = self._places[f"{key}.json"]
        try:
            return SampleNote.model_validate_json(self._mapped[start : start + size])
        except ValidationError:
            raise self._damaged() from None

    def array(self, key: str, name: str) -> NDArray[np.float16]:
        """Return an array of a sample, one of `ARRAYS`; nothing is read before it is used.

        Raises:
            UserError: If it is missing or damaged.
        """
        try:
            start, size = self._places[f"{key}.{name}.npy"]
            header = BytesIO(self._mapped[start : start + min(size, _LONGEST_HEADER)])
            np.lib.format.read_magic(header)
            shape, _, dtype = np.lib.format.read_array_header_1_0(header)
            numbers = np.frombuffer(
                self._mapped, dtype, math.prod(shape), offset=start + header.tell()
            )
        except (KeyError, ValueError):
            raise self._damaged() from None
        return numbers.reshape(shape)

    def _damaged(self) -> UserError:
        return UserError(f"The shard {self.path} is damaged; {_MEND}")


def check_size(path: Path, shard: Shard) -> None:
    """Compare the size of a shard with its index.

    Raises:
        UserError: If it is missing, cut off or changed. It is named.
    """
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise UserError(f"The shard {path} is missing; {_MEND}")
    if size != shard.bytes:
        raise UserError(
            f"The shard {path} is cut off or changed: it has {size:,} bytes and its index says "
            f"{shard.bytes:,}; {_MEND}"
        )


def _scan(path: Path) -> dict[str, tuple[int, int]]:
    """Return where the contents of the members lie, and their sizes, by name."""
    try:
        with tarfile.open(path, "r:") as archive:
            return {member.name: (member.offset_data, member.size) for member in archive}
    except tarfile.TarError:
        raise UserError(f"The shard {path} is damaged; {_MEND}") from None

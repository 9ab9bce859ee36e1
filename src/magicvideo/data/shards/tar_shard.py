"""One shard: a tar file whose bytes depend on its members alone, and the arrays in it.

Arrays are stored in half precision with a scale each, so that rounding is all that is lost.
"""

import math
import tarfile
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float16
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from magicvideo.data.shards.index import SampleMetadata, ShardRecord
from magicvideo.errors import UserError

ArrayName: TypeAlias = Literal["latents", "embeddings", "tokens"]
ARRAY_AXES: dict[ArrayName, str] = {"latents": "f c h w", "embeddings": "f e", "tokens": "l d"}

_HIGHEST = 15  # exponent of the largest number; float16 ends at 2**16
_LOWEST = -126  # exponent of the least scale that is a normal float32
_LONGEST_HEADER = 512  # bytes before the numbers of an .npy file, and more
_BLOCK = 512  # bytes; a tar file has its headers and contents in blocks
_REPAIR = "copy it again, or delete it and run `magicvideo data encode` again."


def to_scaled_fp16(values: Float[np.ndarray, "..."]) -> tuple[Float16[np.ndarray, "..."], float]:
    """Return values as float16, and the scale by which they have to be multiplied.

    The largest absolute value is brought into the upper two octaves of float16. So nothing
    overflows, and only numbers below 2**-28 of the largest have less than 11 bits. The scale is a
    power of two and rounds nothing itself. It stays a normal float32, so that digits are lost where
    all values are below 2**-110.
    """
    largest = float(np.abs(values).max(initial=0.0))
    scale = 2.0 ** max(math.frexp(largest)[1] - _HIGHEST, _LOWEST)
    return (values / np.float32(scale)).astype(np.float16), scale


def from_scaled_fp16(stored: NDArray[np.float16], scale: float) -> Float[Tensor, "..."]:
    """Return the values in single precision."""
    return torch.from_numpy(stored.astype(np.float32)).mul_(scale)


def sample_key(number: int, variant: int) -> str:
    """Return the key of a sample: the clip's number in the shard, and the variant of it."""
    return f"{number:05d}-{variant:02d}"


def open_archive(path: Path) -> tarfile.TarFile:
    """Return a new tar file for `add_member`, to be closed by its context."""
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a named content to a tar file, with no date and no owner."""
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, BytesIO(content))


def array_bytes(values: NDArray[np.float16]) -> bytes:
    """Return an array as an .npy file."""
    file = BytesIO()
    np.lib.format.write_array(file, values, version=(1, 0), allow_pickle=False)
    return file.getvalue()


class ShardReader:
    """A shard on this machine, mapped into memory.

    Args:
        path: The tar file.
        record: Its entry in the index.

    Attributes:
        path: The tar file.
        clips: The keys of the variants of each clip.

    Raises:
        UserError: If it is missing, cut off or damaged; the message names it.
    """

    def __init__(self, path: Path, record: ShardRecord) -> None:
        check_size(path, record)
        self.path = path
        try:
            self._members = _scan(path)
        except (tarfile.TarError, ValueError, OSError):
            raise self._damaged() from None
        keys: dict[str, list[str]] = {}
        for name in self._members:
            if name.endswith(".json"):
                key = name.removesuffix(".json")
                keys.setdefault(key.partition("-")[0], []).append(key)
        self.clips = [keys[number] for number in sorted(keys)]
        if len(self.clips) != record.clips:
            raise self._damaged()
        with path.open("rb") as file:
            self._mapped = mmap(file.fileno(), 0, access=ACCESS_READ)

    def metadata(self, key: str) -> SampleMetadata:
        """Return the metadata of a sample.

        Raises:
            UserError: If they are damaged.
        """
        start, size = self._members[f"{key}.json"]
        try:
            return SampleMetadata.model_validate_json(self._mapped[start : start + size])
        except ValidationError:
            raise self._damaged() from None

    def array(self, key: str, name: ArrayName) -> NDArray[np.float16]:
        """Return an array of a sample; nothing is read before it is used.

        Raises:
            UserError: If it is missing, damaged, or has other axes than `ARRAY_AXES` says.
        """
        try:
            start, size = self._members[f"{key}.{name}.npy"]
            header = BytesIO(self._mapped[start : start + min(size, _LONGEST_HEADER)])
            version = np.lib.format.read_magic(header)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(header)
            count, begin = math.prod(shape), header.tell()
            if (
                version != (1, 0)
                or is_fortran
                or dtype != np.float16
                or len(shape) != len(ARRAY_AXES[name].split())
                or min(shape) < 1
                or begin + count * dtype.itemsize != size
            ):
                raise self._damaged()
            numbers = np.frombuffer(self._mapped, dtype, count, offset=start + begin)
        except (KeyError, ValueError, TypeError, OverflowError):
            raise self._damaged() from None
        return numbers.reshape(shape)

    def _damaged(self) -> UserError:
        return UserError(f"The shard {self.path} is damaged; {_REPAIR}")


def check_size(path: Path, record: ShardRecord) -> None:
    """Compare the size of a shard with its index.

    Raises:
        UserError: If it is missing, cut off or changed; the message names it.
    """
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise UserError(f"The shard {path} is missing; {_REPAIR}")
    if size != record.bytes:
        raise UserError(
            f"The shard {path} is cut off or changed: it has {size:,} bytes and its index says "
            f"{record.bytes:,}; {_REPAIR}"
        )


def _scan(path: Path) -> dict[str, tuple[int, int]]:
    """Return the place and the size of each member's content by its name.

    Only plain files are accepted. Tar's other members (links, sparse files, headers of any length
    that `tarfile` would read into memory) are not in our shards.

    Raises:
        ValueError: If something else than such members is found, or the file ends within one.
    """
    found: dict[str, tuple[int, int]] = {}
    end = path.stat().st_size
    with path.open("rb") as file:
        while (header := file.read(_BLOCK)) and header.strip(b"\0"):
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            start = file.tell()
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size < 0:
                raise ValueError(f"a member of type {member.type!r}")
            if start + member.size > end:
                raise ValueError("the file ends within a member")
            found[member.name] = (start, member.size)
            file.seek(start + -(-member.size // _BLOCK) * _BLOCK)
    return found

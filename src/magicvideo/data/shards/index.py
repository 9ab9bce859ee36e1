"""The index of a folder of shards: `index.json`, written last, which lists every shard.

A shard is a tar file in WebDataset's layout. A sample is one variant of one clip, under a key of
the clip's number in the shard and the variant, such as 00003-01, with four members:

    KEY.json            caption, frames per second, scales, provenance (`SampleMetadata`)
    KEY.latents.npy     float16 `f c h w`
    KEY.embeddings.npy  float16 `f e`: the CLIP embedding of every frame
    KEY.tokens.npy      float16 `l d`: the hidden states of the caption in the text encoder

An index may come from a server that nobody here controls. So its size is limited, every field is
checked, and names of shards are plain file names.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import fsspec
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from magicvideo.atomic_io import atomic_file
from magicvideo.data.manifest import Fit, FrameRate, FrameSize, Split, square_side
from magicvideo.errors import UserError

INDEX, SETTINGS = "index.json", "encoding.json"

MAX_INDEX_BYTES = 256 << 20
"""Largest index that is read: some hundred million clips."""

PathOrUrl: TypeAlias = Path | str
"""A folder on this machine as a path, anything else as a URL that fsspec opens."""
# no separator and no "..", so that an index from elsewhere cannot name files outside a folder
ShardName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,200}\.tar$")]
Sha256: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Scale: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_FILE = "file://"


class ShardInfo(BaseModel):
    """The settings that decide the bytes of all shards, besides the clips themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    source: str
    origin: str
    """The folder that the clips were read from."""
    height: PositiveInt
    """Of the frames that were encoded, in pixels."""
    width: PositiveInt
    fit: Fit
    frame_step: PositiveInt
    """One frame in so many of the source was kept."""
    licence: str
    split_rule: str
    variants: PositiveInt
    """Samples of each clip that has several backgrounds or captions; other clips have one."""
    clips_per_shard: PositiveInt
    parts: dict[str, str]
    """The hash of the autoencoder, of both towers of CLIP and of the tokenizer."""
    device: Literal["cpu", "cuda"]
    threads: PositiveInt

    @property
    def frame_size(self) -> FrameSize:
        """Return height and width of the frames."""
        return FrameSize(self.height, self.width)

    @property
    def size(self) -> int:
        """Return the side of square frames.

        Raises:
            UserError: If the frames are not square.
        """
        return square_side(self.height, self.width)


class ShardRecord(BaseModel):
    """One tar file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: ShardName
    split: Split
    bytes: PositiveInt
    sha256: Sha256
    clips: NonNegativeInt
    samples: NonNegativeInt
    """All variants of all clips."""
    subject_counts: tuple[PositiveInt, ...] = ()
    """For each clip, the clips of its split that show the same subject; empty if all are 1."""

    @model_validator(mode="after")
    def _check_counts(self) -> "ShardRecord":
        if self.subject_counts and len(self.subject_counts) != self.clips:
            raise ValueError("subject_counts has another length than clips")
        return self


class ShardIndex(BaseModel):
    """A whole folder of shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    info: ShardInfo
    shards: tuple[ShardRecord, ...]


class SampleMetadata(BaseModel):
    """The JSON member of a sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    file: str
    """The clip's file inside the source, or inside the prepared folder."""
    source: str
    source_sha256: str | None
    """Of the source file; None where a prepared folder does not know it."""
    caption: str
    subject: str
    """What the clip shows, whatever the skin tone: clips of one subject share it."""
    background: str | None
    """Its name, where the clip is transparent."""
    fps: FrameRate
    loops: bool
    latents_scale: Scale
    """Stored latents times this are the denoiser's latents; a power of two."""
    embeddings_scale: Scale
    tokens_scale: Scale
    parts: dict[str, str]


def parse_path_or_url(value: object) -> PathOrUrl:
    """Return the place that a setting names: a path, or a URL such as `s3://bucket/folder`.

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


def is_shard_location(location: PathOrUrl) -> bool:
    """Return whether a place is a folder of shards, finished or not. Any URL counts as one."""
    return isinstance(location, str) or any(
        (location / name).is_file() for name in (INDEX, SETTINGS)
    )


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write `index.json`."""
    with atomic_file(folder / INDEX) as partial:
        partial.write_text(index.model_dump_json() + "\n", encoding="utf-8")


def read_index(location: PathOrUrl) -> ShardIndex:
    """Return the index of a folder of shards, on this machine or elsewhere.

    Raises:
        UserError: If there is none, it cannot be read, or it is of another version.
    """
    try:
        files, root = fsspec.core.url_to_fs(str(location))
        with files.open(f"{root}/{INDEX}", "rb") as file:
            content = file.read(MAX_INDEX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(
            f"{location} has no {INDEX}, so it holds no finished shards; make them with "
            "`magicvideo data encode`."
        ) from None
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{location} cannot be opened: {error}.") from None
    if len(content) > MAX_INDEX_BYTES:
        raise UserError(
            f"{location}/{INDEX} has more than {MAX_INDEX_BYTES:,} bytes, the limit; split the "
            "data into several folders."
        )
    try:
        return ShardIndex.model_validate_json(content)
    except ValidationError:
        raise UserError(
            f"{location}/{INDEX} is damaged or of another version; run `magicvideo data encode` "
            "again."
        ) from None

"""What a folder of shards says of itself: `index.json`, written last, which lists every shard.

A shard is a tar file in WebDataset's layout. A sample is one variant of one clip, under a key of
the clip's place in the shard and the variant, such as 00003-01, with four members:

    KEY.json            caption, frames a second, scales, provenance (`SampleNote`)
    KEY.latents.npy     float16 `f c h w`
    KEY.embeddings.npy  float16 `f e`: the CLIP embedding of every frame
    KEY.tokens.npy      float16 `l d`: what the text encoder makes of the caption
"""

from pathlib import Path
from typing import Literal

import fsspec
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from magicvideo.atomic_io import atomic_file
from magicvideo.data.manifest import Split
from magicvideo.data.paths import Location
from magicvideo.errors import UserError

INDEX, SETTINGS = "index.json", "encoding.json"
FORMAT = 1


class ShardInfo(BaseModel):
    """What decides the bytes of all shards, beside the clips themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    source: str
    origin: str
    """The folder that the clips were read from."""
    size: PositiveInt
    """Side of the square frames that were encoded, in pixels."""
    every: PositiveInt
    """Of how many frames of the source one was kept."""
    licence: str
    split_rule: str
    variants: PositiveInt
    """Of each clip that can be shown or told in several ways; of others there is one."""
    clips_per_shard: PositiveInt
    parts: dict[str, str]
    """The hash of the autoencoder, of both towers of CLIP and of the tokenizer."""
    device: Literal["cpu", "cuda"]
    threads: PositiveInt


class Shard(BaseModel):
    """One tar file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    split: Split
    bytes: PositiveInt
    sha256: str
    clips: int
    samples: int
    """All variants of all clips."""


class ShardIndex(BaseModel):
    """A whole folder of shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    info: ShardInfo
    shards: tuple[Shard, ...]


class SampleNote(BaseModel):
    """The JSON member of a sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    file: str
    """The clip's file inside the source, or inside the prepared folder."""
    source: str
    source_sha256: str | None
    """Of the source file; None where a prepared folder does not know it."""
    caption: str
    background: str | None
    """Its name, where the clip is transparent."""
    fps: PositiveFloat
    loops: bool
    latents_scale: float
    """Stored latents times this are those that the denoiser sees; a power of two."""
    embeddings_scale: float
    tokens_scale: float
    parts: dict[str, str]


def is_sharded(location: Location) -> bool:
    """Tell a folder of shards, finished or not, from others. Any URL is taken for shards."""
    return isinstance(location, str) or any(
        (location / name).is_file() for name in (INDEX, SETTINGS)
    )


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write `index.json`."""
    with atomic_file(folder / INDEX) as partial:
        partial.write_text(index.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_index(location: Location) -> ShardIndex:
    """Return the index of a folder of shards, wherever it is.

    Raises:
        UserError: If there is none, it cannot be read, or it is of another version.
    """
    try:
        files, root = fsspec.core.url_to_fs(str(location))
        content = files.cat_file(f"{root}/{INDEX}")
    except FileNotFoundError:
        raise UserError(
            f"{location} has no {INDEX}, so it holds no finished shards; make them with "
            "`magicvideo data encode`."
        ) from None
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{location} cannot be opened: {error}.") from None
    try:
        index = ShardIndex.model_validate_json(content)
    except ValidationError:
        raise UserError(
            f"{location}/{INDEX} is damaged or of another version; run `magicvideo data encode` "
            "again."
        ) from None
    if index.info.format != FORMAT:
        raise UserError(
            f"{location} has format {index.info.format}, this version reads {FORMAT}; encode anew."
        )
    return index

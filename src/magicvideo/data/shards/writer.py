"""One shard: its clips encoded one after the other into a tar file, and a note that it is done."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from magicvideo.atomic_io import atomic_file, remove_partial, sha256
from magicvideo.data.backgrounds import random_background
from magicvideo.data.captions import describe
from magicvideo.data.manifest import Clip, Split
from magicvideo.data.shards.encoder import ClipEncoder, open_encoder
from magicvideo.data.shards.fp16_scaling import pack
from magicvideo.data.shards.index import SampleNote, Shard, ShardInfo
from magicvideo.data.shards.inputs import Original, ReadClip, read_original
from magicvideo.data.shards.tar_shard import ARRAYS, array_bytes, sample_key, write_archive
from magicvideo.data.sources.source import Skipped
from magicvideo.media.video_reader import ClipError
from magicvideo.models.pretrained_encoders import FrozenEncoderPaths


class ShardNote(BaseModel):
    """The file beside a shard that is done: what the index will say, and what it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stamp: str
    """What changes with the settings and with every clip of the shard."""
    shard: Shard
    skipped: tuple[tuple[str, str], ...]
    """Files that became no clip, and why."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to be made.

    Attributes:
        name: Of its file, without `.tar`.
        split: Of its clips.
        originals: The clips that belong into it.
        info: The settings of all shards.
        folders: The parts that encode.
        device: Where they do, as torch names it.
        out: Folder of the shards.
    """

    name: str
    split: Split
    originals: tuple[Original, ...]
    info: ShardInfo
    folders: FrozenEncoderPaths
    device: str
    out: Path

    @property
    def stamp(self) -> str:
        """Return what changes with the settings and with every clip."""
        digest = hashlib.sha256(self.info.model_dump_json().encode())
        for original in self.originals:
            digest.update(f"\n{original.id}\n{original.stamp}".encode())
        return digest.hexdigest()

    @property
    def target(self) -> Path:
        """Return the path of the shard."""
        return self.out / f"{self.name}.tar"

    def finished(self) -> ShardNote | None:
        """Return the note of the shard if it is there, whole, and made of these clips."""
        try:
            note = ShardNote.model_validate_json((self.out / f"{self.name}.json").read_bytes())
            is_whole = self.target.stat().st_size == note.shard.bytes
        except (OSError, ValidationError):
            return None
        return note if is_whole and note.stamp == self.stamp else None


def make_shard(job: ShardJob) -> ShardNote:
    """Encode a shard and return its note, which is written when the shard is there.

    Raises:
        UserError: If a file of a prepared folder is damaged.
    """
    encoder = open_encoder(job.folders, job.device, job.info.threads)
    remove_partial(job.out, job.name)
    made, skipped = list[str](), list[Skipped]()
    with atomic_file(job.target) as partial:
        write_archive(partial, _members(job, encoder, made, skipped))
    note = ShardNote(
        stamp=job.stamp,
        shard=Shard(
            file=job.target.name,
            split=job.split,
            bytes=job.target.stat().st_size,
            sha256=sha256(job.target),
            clips=len(set(made)),
            samples=len(made),
        ),
        skipped=tuple((one.file, one.reason) for one in skipped),
    )
    with atomic_file(job.out / f"{job.name}.json") as partial:
        partial.write_text(note.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return note


def _members(
    job: ShardJob, encoder: ClipEncoder, made: list[str], skipped: list[Skipped]
) -> Iterator[tuple[str, bytes]]:
    """Yield the members of a shard; note the id of every sample, and what becomes none."""
    for place, original in enumerate(job.originals):
        try:
            read = read_original(original, job.info.size, job.info.every)
            variants = job.info.variants if _varies(read.clip) else 1
            # all variants before the first is written, so that a clip is in the shard or is not
            samples = [_sample(job, encoder, original, read, v) for v in range(variants)]
        except ClipError as error:
            skipped.append(Skipped(original.file, str(error)))
            continue
        for variant, contents in enumerate(samples):
            made.append(original.id)
            key = sample_key(place, variant)
            for suffix, content in contents.items():
                yield f"{key}.{suffix}", content


def _sample(
    job: ShardJob, encoder: ClipEncoder, original: Original, read: ReadClip, variant: int
) -> dict[str, bytes]:
    """Return the contents of a sample by suffix: its note, and its arrays."""
    rng = np.random.default_rng(_seed(original.id, variant))
    background = random_background(rng) if read.clip.channels == 4 else None
    caption = describe(read.clip, background, rng)
    encoded = encoder.encode(read.pixels, background, caption)
    if not encoded.is_finite():
        raise ClipError("the model makes numbers of it that are not finite")
    packed = {name: pack(getattr(encoded, name)) for name in ARRAYS}
    note = SampleNote(
        id=original.id,
        file=original.file,
        source=job.info.source,
        source_sha256=read.source_sha256,
        caption=caption,
        background=background.name if background else None,
        fps=read.clip.fps,
        loops=read.clip.loops,
        latents_scale=packed["latents"][1],
        embeddings_scale=packed["embeddings"][1],
        tokens_scale=packed["tokens"][1],
        parts=job.info.parts,
    )
    arrays = {f"{name}.npy": array_bytes(stored) for name, (stored, _) in packed.items()}
    return {"json": note.model_dump_json().encode(), **arrays}


def _varies(clip: Clip) -> bool:
    """Return whether a clip can be shown or told in more than one way."""
    return clip.channels == 4 or clip.attributes is not None or bool(clip.other_texts)


def _seed(clip_id: str, variant: int) -> int:
    digest = hashlib.sha256(f"{clip_id}\n{variant}".encode()).digest()
    return int.from_bytes(digest[:8], "little")

"""Writing one shard: its clips are encoded one after the other into a tar file.

The bytes of a shard depend on its clips and the settings alone, whatever is encoded next to it.
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from magicvideo.atomic_io import atomic_file, remove_partial, sha256
from magicvideo.data.backgrounds import Background, random_background
from magicvideo.data.captions import random_caption
from magicvideo.data.dataset import ClipDataset, composite_background
from magicvideo.data.manifest import ClipRecord, Split
from magicvideo.data.prepare import (
    CachedFile,
    FrameSettings,
    cache_path,
    decode_source_clip,
    fingerprint,
    read_progress,
    to_clip_record,
)
from magicvideo.data.shards.index import SampleMetadata, ShardInfo, ShardRecord
from magicvideo.data.shards.tar_shard import (
    ARRAY_AXES,
    add_member,
    array_bytes,
    open_archive,
    sample_key,
    to_scaled_fp16,
)
from magicvideo.data.sources.source import SkippedFile, Source, SourceClip
from magicvideo.errors import ClipError, UserError
from magicvideo.models.autoencoder import encode_frames
from magicvideo.models.conditioning import embed_frames, encode_text
from magicvideo.models.pretrained_encoders import FrozenEncoderPaths, FrozenEncoders

_CHUNK = 16  # frames of one pass; another number would round differently


@dataclass(frozen=True)
class EncodeInput:
    """One clip before it is encoded.

    Attributes:
        id: Of the clip.
        split: Of the clip.
        file: Its path inside the source, in a form that can be printed.
        fingerprint: Changes when the clip does; found without reading its pixels.
        entry: The clip as a prepared folder, or as a source, describes it.
        path: The file.
        source_sha256: Of the source file; None where it is known only once the file is read.
    """

    id: str
    split: Split
    file: str
    fingerprint: str
    entry: ClipRecord | SourceClip
    path: Path
    source_sha256: str | None


@dataclass(frozen=True)
class EncodeInputs:
    """All clips that are encoded together, and their origin."""

    source: str
    origin: str
    frames: FrameSettings
    licence: str
    split_rule: str
    clips: list[EncodeInput]
    skipped: list[SkippedFile]


@dataclass(frozen=True)
class LoadedClip:
    """A clip with its pixels, uint8 `f h w c`, and the SHA-256 of its source file."""

    record: ClipRecord
    pixels: NDArray[np.uint8]
    source_sha256: str | None


def inputs_from_prepared(folder: Path) -> EncodeInputs:
    """Return the clips of a prepared folder.

    Raises:
        UserError: If the folder is not prepared to the end or a file is missing.
    """
    dataset = ClipDataset(folder, get_args(Split))
    info, finished = dataset.info, read_progress(folder)
    clips = [
        EncodeInput(
            id=clip.id,
            split=clip.split,
            file=clip.file,
            fingerprint=_hash(clip.model_dump_json()),
            entry=clip,
            path=folder / clip.file,
            source_sha256=finished[clip.id].source_sha256 if clip.id in finished else None,
        )
        for clip in dataset.clips
    ]
    return EncodeInputs(
        source=info.source,
        origin=info.origin,
        frames=FrameSettings(info.height, info.width, info.fit, info.frame_step),
        licence=info.licence,
        split_rule=info.split_rule,
        clips=clips,
        skipped=[],
    )


def inputs_from_source(source: Source, frames: FrameSettings) -> EncodeInputs:
    """Return the clips of a source, which are decoded when they are encoded.

    Args:
        source: What to decode.
        frames: The frames that are encoded.
    """
    clips = [
        EncodeInput(
            id=clip.id,
            split=clip.split,
            file=clip.file,
            fingerprint=_hash(repr(asdict(clip)), *_size_and_date(clip.path)),
            entry=clip,
            path=clip.path,
            source_sha256=None,
        )
        for clip in source.clips
    ]
    return EncodeInputs(
        source=source.name,
        origin=str(source.folder.resolve()),
        frames=frames,
        licence=source.licence,
        split_rule=source.split_rule,
        clips=clips,
        skipped=source.skipped,
    )


def load_input(clip: EncodeInput, frames: FrameSettings) -> LoadedClip:
    """Return a clip with all its frames.

    Raises:
        ClipError: If a source file cannot be used.
        UserError: If a file of a prepared folder is damaged.
    """
    if isinstance(clip.entry, ClipRecord):
        try:
            pixels = np.load(clip.path)
        except (OSError, ValueError, EOFError):
            raise UserError(
                f"{clip.path} is damaged; delete it and run `magicvideo data prepare` again."
            ) from None
        return LoadedClip(clip.entry, pixels, clip.source_sha256)
    decoded = decode_source_clip(clip.entry, frames)
    digest = fingerprint(clip.entry)
    cached = CachedFile(
        id=clip.id,
        source_sha256=digest,
        file=cache_path(clip.id),
        bytes=clip.path.stat().st_size,
        frames=len(decoded.pixels),
        fps=decoded.fps,
        channels=decoded.pixels.shape[-1],
        sha256=digest,
    )
    return LoadedClip(to_clip_record(clip.entry, cached), decoded.pixels, digest)


@dataclass(frozen=True)
class EncodedClip:
    """All frames of a clip on one background, and one caption."""

    latents: Float[np.ndarray, "f c h w"]
    embeddings: Float[np.ndarray, "f e"]
    tokens: Float[np.ndarray, "l d"]

    def is_finite(self) -> bool:
        """Return whether all numbers are finite."""
        return all(np.isfinite(array).all() for array in vars(self).values())


class LatentEncoder:
    """Passes clips through the frozen encoders, one clip and a few frames at a time.

    Args:
        encoders: Autoencoder, CLIP and tokenizer.
        device: Where they run.
    """

    def __init__(self, encoders: FrozenEncoders, device: torch.device) -> None:
        encoders.to(device)
        self.encoders, self.device = encoders, device

    @torch.no_grad()
    def encode(
        self, pixels: NDArray[np.uint8], background: Background | None, caption: str
    ) -> EncodedClip:
        """Return the arrays of a clip.

        Args:
            pixels: All frames, `f h w c`, premultiplied RGBA or RGB.
            background: What is put behind RGBA.
            caption: Its words; what goes beyond the tokenizer's length is cut.
        """
        latents, embeddings = [], []
        for start in range(0, len(pixels), _CHUNK):
            chunk = composite_background(pixels[start : start + _CHUNK], background)
            frames = chunk[None].to(self.device)
            latents.append(encode_frames(self.encoders.vae, frames)[0].cpu())
            embeddings.append(embed_frames(self.encoders.image_encoder, frames)[0].cpu())
        tokens = encode_text(self.encoders.text_encoder, self.encoders.tokenizer, [caption])[0]
        return EncodedClip(
            latents=torch.cat(latents).numpy(),
            embeddings=torch.cat(embeddings).numpy(),
            tokens=tokens.cpu().numpy(),
        )


@lru_cache(maxsize=1)
def open_encoder(paths: FrozenEncoderPaths, device: str, threads: int) -> LatentEncoder:
    """Return the encoder of this process, set up so that an equal clip gives equal bytes.

    Args:
        paths: Where the encoders are.
        device: As torch names it.
        threads: Of the CPU; another number would round differently.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return LatentEncoder(paths.load(), torch.device(device))


class ShardManifest(BaseModel):
    """The file next to a finished shard: its entry in the index, and what it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    """Changes with the settings and with every clip of the shard."""
    shard: ShardRecord
    subjects: tuple[str, ...]
    """A hash of each clip's subject, from which the index counts clips of equal subjects."""
    skipped: tuple[tuple[str, str], ...]
    """Files that became no clip, and the reasons."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written.

    Attributes:
        name: Of its file, without `.tar`.
        split: Of its clips.
        clips: The clips that belong into it.
        frames: The frames of the clips.
        info: The settings of all shards.
        encoders: Where the encoders are.
        device: Where they run, as torch names it.
        out: Folder of the shards.
    """

    name: str
    split: Split
    clips: tuple[EncodeInput, ...]
    frames: FrameSettings
    info: ShardInfo
    encoders: FrozenEncoderPaths
    device: str
    out: Path

    @property
    def fingerprint(self) -> str:
        """Return a hash that changes with the settings and with every clip."""
        digest = hashlib.sha256(self.info.model_dump_json().encode())
        for clip in self.clips:
            digest.update(f"\n{clip.id}\n{clip.fingerprint}".encode())
        return digest.hexdigest()

    @property
    def target(self) -> Path:
        """Return the path of the shard."""
        return self.out / f"{self.name}.tar"

    def finished(self) -> ShardManifest | None:
        """Return the manifest of the shard if it is there, whole, and made of these clips."""
        try:
            content = (self.out / f"{self.name}.json").read_bytes()
            manifest = ShardManifest.model_validate_json(content)
            is_whole = self.target.stat().st_size == manifest.shard.bytes
        except (OSError, ValidationError):
            return None
        return manifest if is_whole and manifest.fingerprint == self.fingerprint else None


def write_shard(job: ShardJob) -> ShardManifest:
    """Encode the clips of a shard and write it, and then its manifest, which is returned.

    Raises:
        UserError: If a file of a prepared folder is damaged.
    """
    encoder = open_encoder(job.encoders, job.device, job.info.threads)
    remove_partial(job.out, job.name)
    subjects, skipped, num_samples = list[str](), list[tuple[str, str]](), 0
    with atomic_file(job.target) as partial, open_archive(partial) as archive:
        for number, clip in enumerate(job.clips):
            try:
                loaded = load_input(clip, job.frames)
                # all variants before the first is written: a clip is whole in the shard, or absent
                samples = [
                    _encode_variant(job, encoder, clip, loaded, variant)
                    for variant in range(job.info.variants if _varies(loaded.record) else 1)
                ]
            except ClipError as error:
                skipped.append((clip.file, str(error)))
                continue
            for variant, contents in enumerate(samples):
                for suffix, content in contents.items():
                    add_member(archive, f"{sample_key(number, variant)}.{suffix}", content)
            subjects.append(_hash(loaded.record.subject)[:16])
            num_samples += len(samples)
    manifest = ShardManifest(
        fingerprint=job.fingerprint,
        shard=ShardRecord(
            file=job.target.name,
            split=job.split,
            bytes=job.target.stat().st_size,
            sha256=sha256(job.target),
            clips=len(subjects),
            samples=num_samples,
        ),
        subjects=tuple(subjects),
        skipped=tuple(skipped),
    )
    with atomic_file(job.out / f"{job.name}.json") as partial:
        partial.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def _encode_variant(
    job: ShardJob, encoder: LatentEncoder, clip: EncodeInput, loaded: LoadedClip, variant: int
) -> dict[str, bytes]:
    """Return the contents of a sample by suffix: its metadata, and its arrays."""
    record = loaded.record
    rng = np.random.default_rng(_seed(clip.id, variant))
    background = random_background(rng) if record.channels == 4 else None
    caption = random_caption(record, background, rng)
    encoded = encoder.encode(loaded.pixels, background, caption)
    if not encoded.is_finite():
        raise ClipError("the encoders make numbers of it that are not finite")
    scaled = {name: to_scaled_fp16(getattr(encoded, name)) for name in ARRAY_AXES}
    metadata = SampleMetadata(
        id=clip.id,
        file=clip.file,
        source=job.info.source,
        source_sha256=loaded.source_sha256,
        caption=caption,
        subject=record.subject,
        background=background.name if background else None,
        fps=record.fps,
        loops=record.loops,
        latents_scale=scaled["latents"][1],
        embeddings_scale=scaled["embeddings"][1],
        tokens_scale=scaled["tokens"][1],
        parts=job.info.parts,
    )
    arrays = {f"{name}.npy": array_bytes(stored) for name, (stored, _) in scaled.items()}
    return {"json": metadata.model_dump_json().encode(), **arrays}


def _varies(clip: ClipRecord) -> bool:
    """Return whether a clip has several backgrounds or captions."""
    return clip.channels == 4 or clip.attributes is not None or bool(clip.alt_captions)


def _seed(clip_id: str, variant: int) -> int:
    digest = hashlib.sha256(f"{clip_id}\n{variant}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _size_and_date(path: Path) -> tuple[str, ...]:
    """Return the size and date of a file; to hash all of them would be to read all of them."""
    try:
        status = path.stat()
    except OSError:
        return ("unreadable",)
    return str(status.st_size), str(status.st_mtime_ns)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

"""Training samples out of shards: latents of some frames, their rate, and the caption's tokens."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.data.frame_sampling import choose_frames
from magicvideo.data.manifest import Split
from magicvideo.data.paths import Location
from magicvideo.data.shards.fp16_scaling import unpack
from magicvideo.data.shards.index import read_index
from magicvideo.data.shards.shard_cache import ShardFiles
from magicvideo.data.shards.shard_sampler import ShardOrder
from magicvideo.data.shards.tar_shard import check_size
from magicvideo.errors import UserError
from magicvideo.shapes import Latents, Tokens

CACHE = Path("~/.cache/magicvideo/shards")
_KEPT_WINDOWS = 3  # the one before, for processes that lag behind, and the one to come


@dataclass(frozen=True)
class EncodedSample:
    """Some frames of one clip as the autoencoder codes them, at `fps` frames a second."""

    latents: Float[Tensor, "f c h w"]
    embeddings: Float[Tensor, "f e"]
    tokens: Float[Tensor, "l d"]
    fps: float
    caption: str
    clip_id: str


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded samples of equal length, stacked."""

    latents: Latents
    embeddings: Float[Tensor, "b f e"]
    tokens: Tokens
    fps: Float[Tensor, " b"]
    captions: list[str]
    clip_ids: list[str]


class ShardDataset:
    """The clips of a folder of shards, here or elsewhere, read as they are asked for.

    Args:
        location: The folder, or its URL.
        splits: Which clips count.
        window: Shards among which clips are shuffled; three times as many are kept.
        cache: Folder for shards that are fetched from a URL.

    Raises:
        UserError: If there are no finished shards, no clip is in `splits`, or a shard on this
            machine is missing or cut off.
    """

    def __init__(
        self,
        location: Location,
        splits: tuple[Split, ...] = ("train",),
        window: int = 8,
        cache: Path = CACHE,
    ) -> None:
        index = read_index(location)
        self.location, self.info = location, index.info
        shards = tuple(s for s in index.shards if s.split in splits and s.clips)
        if not shards:
            raise UserError(f"{location} has no clip in {' or '.join(splits)}.")
        name = hashlib.sha256(index.model_dump_json().encode()).hexdigest()[:16]
        keep = _KEPT_WINDOWS * window
        self._files = ShardFiles(location, shards, cache.expanduser() / name, keep)
        if isinstance(location, Path):
            for shard in shards:
                check_size(location / shard.file, shard)
        self._order = ShardOrder(tuple(shard.clips for shard in shards), window)
        self._expected: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return self._order.length

    def indices(self, seed: int, first: int, count: int) -> list[int]:
        """Return the clips at some positions of the endless order.

        From the middle of a window on, the shards of the next are fetched in the background.
        """
        epoch, window, place = self._order.place(seed, first)
        here = self._order.window_shards(seed, epoch, window)
        size = sum(self._files.shards[number].clips for number in here)
        if 2 * place >= size and self._expected != (seed, epoch, window):
            self._expected = (seed, epoch, window)
            self._files.expect(self._order.window_shards(seed, epoch, window + 1))
        return self._order.clips(seed, first, count)

    def sample(
        self,
        index: int,
        rng: np.random.Generator,
        *,
        num_frames: int,
        strides: tuple[int, int] = (1, 4),
    ) -> EncodedSample:
        """Return frames of clip number `index` at a random rate and start, in a random variant.

        Args:
            index: Which clip.
            rng: Source of every random choice; an equal state gives an equal sample.
            num_frames: How many frames; `sampling.choose_frames` says how short clips are filled.
            strides: Lowest and highest stride between frames.

        Raises:
            UserError: If the clip's shard cannot be read. It is named.
        """
        number, place = self._order.shard_of(index)
        shard = self._files.open(number)
        variants = shard.clips[place]
        key = variants[int(rng.integers(len(variants)))]
        note = shard.note(key)
        latents, embeddings, tokens = (
            shard.array(key, name) for name in ("latents", "embeddings", "tokens")
        )
        chosen, stride = choose_frames(len(latents), num_frames, strides, rng, loops=note.loops)
        return EncodedSample(
            latents=unpack(latents[chosen], note.latents_scale),
            embeddings=unpack(embeddings[chosen], note.embeddings_scale),
            tokens=unpack(tokens, note.tokens_scale),
            fps=note.fps / stride,
            caption=note.caption,
            clip_id=note.id,
        )

    def captions(self, count: int) -> tuple[list[str], float]:
        """Return captions of clips of the first shard, again from its start if there are too few.

        The lowest of their frame rates comes along.
        """
        shard = self._files.open(0)
        notes = [shard.note(shard.clips[n % len(shard.clips)][0]) for n in range(count)]
        return [note.caption for note in notes], min(note.fps for note in notes)


def collate_encoded(samples: list[EncodedSample]) -> EncodedBatch:
    """Stack samples of equal length."""
    return EncodedBatch(
        latents=torch.stack([sample.latents for sample in samples]),
        embeddings=torch.stack([sample.embeddings for sample in samples]),
        tokens=torch.stack([sample.tokens for sample in samples]),
        fps=torch.tensor([sample.fps for sample in samples]),
        captions=[sample.caption for sample in samples],
        clip_ids=[sample.clip_id for sample in samples],
    )

"""Training samples from shards: latents of some frames, their rate, and the caption's tokens."""

import hashlib
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from magicvideo.atomic_io import atomic_file, remove_partial
from magicvideo.data.dataset import (
    TensorBatch,
    sample_frame_indices,
    sample_systematically,
)
from magicvideo.data.manifest import Split
from magicvideo.data.shards.index import PathOrUrl, ShardRecord, read_index
from magicvideo.data.shards.tar_shard import ShardReader, check_size, from_scaled_fp16
from magicvideo.errors import UserError
from magicvideo.shapes import Latents, Tokens

CACHE = Path("~/.cache/magicvideo/shards")

_KEPT_WINDOWS = 3  # the last one, for processes that lag behind, this one, and the next
_PIECE = 1 << 22  # bytes that are fetched at a time
_LOCK = ".lock"
_SHARDS, _CLIPS = 2, 3  # streams of random numbers; 0 and 1 are those of `batch_order`


@dataclass(frozen=True)
class EncodedSample:
    """Some frames of one clip as latents of the autoencoder, at `fps` frames per second."""

    latents: Float[Tensor, "f c h w"]
    embeddings: Float[Tensor, "f e"]
    tokens: Float[Tensor, "l d"]
    fps: float
    caption: str
    clip_id: str


@dataclass(frozen=True)
class EncodedBatch(TensorBatch):
    """Encoded samples of equal length, stacked."""

    latents: Latents
    embeddings: Float[Tensor, "b f e"]
    tokens: Tokens
    fps: Float[Tensor, " b"]
    captions: list[str]
    clip_ids: list[str]


class ShardDataset:
    """The clips of a folder of shards, on this machine or elsewhere, read on demand.

    It can be sent to other processes, such as workers of a `DataLoader`.

    Args:
        location: The folder, or its URL.
        splits: The splits whose clips are read.
        window: Shards among which clips are shuffled; three times as many are kept.
        cache: Folder for shards that are fetched from a URL.

    Attributes:
        location: The folder, or its URL.
        info: The settings of the shards.

    Raises:
        UserError: If there are no finished shards, no clip is in `splits`, or a shard on this
            machine is missing or cut off.
    """

    def __init__(
        self,
        location: PathOrUrl,
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
        self._cache = ShardCache(location, shards, cache.expanduser() / name, keep)
        if isinstance(location, Path):
            for shard in shards:
                check_size(location / shard.file, shard)
        self._window = window
        self._samplers: dict[float, ShardSampler] = {}
        self._prefetched: tuple[float, int, int, int] | None = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return self._sampler(0.0).length

    def sample_indices(
        self, seed: int, first: int, count: int, subject_balance: float = 0.0
    ) -> list[int]:
        """Return the clips at some positions of the endless order.

        From the middle of a window on, the shards of the next are fetched in the background.

        Args:
            seed: Of the order.
            first: The first position.
            count: How many positions.
            subject_balance: From 0, where each clip is drawn equally often, to 1, where each
                subject is, however many clips show it.
        """
        sampler = self._sampler(subject_balance)
        epoch, window, place = sampler.locate(seed, first)
        if 2 * place >= sampler.window_length(seed, epoch, window):
            current = (subject_balance, seed, epoch, window)
            if self._prefetched != current:
                self._prefetched = current
                self._cache.prefetch(sampler.window_shards(seed, epoch, window + 1))
        return sampler.clips(seed, first, count)

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
            num_frames: How many frames; `sample_frame_indices` documents how short clips are
                filled.
            strides: Lowest and highest stride between frames.

        Raises:
            UserError: If the clip's shard cannot be read, or holds numbers that are not finite; the
                message names it.
        """
        number, place = self._sampler(0.0).shard_of(index)
        shard = self._cache.open(number)
        variants = shard.clips[place]
        key = variants[int(rng.integers(len(variants)))]
        about = shard.metadata(key)
        latents, embeddings = shard.array(key, "latents"), shard.array(key, "embeddings")
        if len(latents) != len(embeddings):
            raise UserError(f"The shard {shard.path} has a clip with two lengths; encode it again.")
        chosen, stride = sample_frame_indices(
            len(latents), num_frames, strides, rng, loops=about.loops
        )
        sample = EncodedSample(
            latents=from_scaled_fp16(latents[chosen], about.latents_scale),
            embeddings=from_scaled_fp16(embeddings[chosen], about.embeddings_scale),
            tokens=from_scaled_fp16(shard.array(key, "tokens"), about.tokens_scale),
            fps=about.fps / stride,
            caption=about.caption,
            clip_id=about.id,
        )
        for values in (sample.latents, sample.embeddings, sample.tokens):
            if not values.isfinite().all():
                raise UserError(
                    f"The clip {about.id} in {shard.path} has numbers that are not finite; encode "
                    "it again."
                )
        return sample

    def captions(self, count: int) -> tuple[list[str], float]:
        """Return captions of clips of the first shard, repeated where it has fewer.

        The lowest of their frame rates is returned with them.
        """
        shard = self._cache.open(0)
        found = [shard.metadata(shard.clips[n % len(shard.clips)][0]) for n in range(count)]
        return [about.caption for about in found], min(about.fps for about in found)

    def _sampler(self, subject_balance: float) -> "ShardSampler":
        if subject_balance not in self._samplers:
            shards = self._cache.shards
            weights = None
            if subject_balance and any(shard.subject_counts for shard in shards):
                weights = [
                    np.array(shard.subject_counts or (1,) * shard.clips, float) ** -subject_balance
                    for shard in shards
                ]
            counts = tuple(shard.clips for shard in shards)
            self._samplers[subject_balance] = ShardSampler(counts, self._window, weights)
        return self._samplers[subject_balance]


class ShardSampler:
    """The endless order of clips over shards, a pure function of the seed and the position.

    An epoch is a permutation of all clips that a reader with room for a few shards can follow:
    shards are shuffled, every few of them are a window, and clips are shuffled inside the window.
    Processes that take positions in turn read in one window, so one cache serves all of a machine.

    Args:
        counts: Clips of every shard.
        window: How many shards are open at a time.
        weights: Of the clips of every shard. With them an epoch, as long as before, has each clip
            in proportion to its weight, rounded up or down at random.
    """

    def __init__(
        self,
        counts: tuple[int, ...],
        window: int,
        weights: Sequence[NDArray[np.float64]] | None = None,
    ) -> None:
        self.counts, self.window, self.weights = np.array(counts), window, weights
        self.length = sum(counts)
        self._starts = np.cumsum([0, *counts[:-1]])
        # caches of this sampler: one of the function's would keep every sampler alive
        self._shards = lru_cache(maxsize=2)(self._make_shards)
        self._ends = lru_cache(maxsize=2)(self._make_ends)
        self._clips = lru_cache(maxsize=2)(self._make_clips)

    def __reduce__(self) -> tuple[type["ShardSampler"], tuple[object, ...]]:
        """Return what other processes make it from; caches are not sent."""
        return ShardSampler, (tuple(self.counts.tolist()), self.window, self.weights)

    def locate(self, seed: int, position: int) -> tuple[int, int, int]:
        """Return the epoch of a position, the window in it, and the place in the window."""
        epoch, place = divmod(position, self.length)
        ends = self._ends(seed, epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        return epoch, window, place - (int(ends[window - 1]) if window else 0)

    def clips(self, seed: int, first: int, count: int) -> list[int]:
        """Return the clips at some positions in a row, numbered through all shards."""
        chosen = []
        for position in range(first, first + count):
            epoch, window, place = self.locate(seed, position)
            chosen.append(int(self._clips(seed, epoch, window)[place]))
        return chosen

    def window_shards(self, seed: int, epoch: int, window: int) -> list[int]:
        """Return the shards of a window; the one after the last is the first of the next epoch."""
        if window * self.window >= len(self.counts):
            epoch, window = epoch + 1, 0
        order = self._shards(seed, epoch)
        return order[window * self.window : (window + 1) * self.window].tolist()

    def window_length(self, seed: int, epoch: int, window: int) -> int:
        """Return the number of positions in a window."""
        ends = self._ends(seed, epoch)
        return int(ends[window]) - (int(ends[window - 1]) if window else 0)

    def shard_of(self, clip: int) -> tuple[int, int]:
        """Return the shard of a clip, and the clip's number in it."""
        shard = int(np.searchsorted(self._starts, clip, side="right")) - 1
        return shard, clip - int(self._starts[shard])

    def _make_shards(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((seed, _SHARDS, epoch)).permutation(len(self.counts))

    def _make_ends(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the position within the epoch at which each window ends."""
        order = self._shards(seed, epoch)
        last = np.append(np.arange(self.window - 1, len(order) - 1, self.window), len(order) - 1)
        if self.weights is None:
            return np.cumsum(self.counts[order])[last]
        # each window gets its share of the weight, and the windows together the whole epoch
        totals = np.cumsum([self.weights[number].sum() for number in order])
        return np.rint(totals[last] / totals[-1] * self.length).astype(np.int64)

    def _make_clips(self, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
        shards = self.window_shards(seed, epoch, window)
        clips = np.concatenate([self._starts[n] + np.arange(self.counts[n]) for n in shards])
        rng = np.random.default_rng((seed, _CLIPS, epoch, window))
        if self.weights is None:
            return rng.permutation(clips)
        weights = np.concatenate([self.weights[number] for number in shards])
        count = self.window_length(seed, epoch, window)
        return clips[sample_systematically(weights, count, rng)]


class ShardCache:
    """Shards as files on this machine: in place, or else fetched as a whole and kept.

    Of fetched shards only those used last are kept. Processes and runs may share a cache: a lock
    for each shard lets one fetch while the others wait.

    Args:
        location: Folder or URL of the shards.
        shards: Their records in the index, by number.
        cache: Folder for fetched shards of this data set.
        keep: How many are open, and how many are in the cache.
    """

    def __init__(
        self, location: PathOrUrl, shards: tuple[ShardRecord, ...], cache: Path, keep: int
    ) -> None:
        self.location, self.shards, self.cache, self.keep = location, shards, cache, keep
        self._opened: OrderedDict[int, ShardReader] = OrderedDict()
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._fetcher: threading.Thread | None = None
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type["ShardCache"], tuple[object, ...]]:
        """Return what other processes make it from; open files and threads are not sent."""
        return ShardCache, (self.location, self.shards, self.cache, self.keep)

    def open(self, number: int) -> ShardReader:
        """Return a shard.

        Raises:
            UserError: If it is missing, cut off or damaged, or cannot be fetched.
        """
        if number not in self._opened:
            record = self.shards[number]
            if isinstance(self.location, Path):
                self._opened[number] = ShardReader(self.location / record.file, record)
            else:
                self._opened[number] = self._fetch(record)
            if len(self._opened) > self.keep:
                self._opened.popitem(last=False)
        self._opened.move_to_end(number)
        return self._opened[number]

    def prefetch(self, numbers: list[int]) -> None:
        """Fetch shards in the background that will be opened soon."""
        if isinstance(self.location, Path):
            return
        if self._process != os.getpid():  # a fork has the queue, but not the thread
            self._wanted, self._fetcher, self._process = queue.SimpleQueue(), None, os.getpid()
        for number in numbers:
            self._wanted.put(number)
        if self._fetcher is None:
            # a daemon: the end of a run does not wait for shards that it will not read
            self._fetcher = threading.Thread(target=self._fetch_wanted, daemon=True)
            self._fetcher.start()

    def _fetch_wanted(self) -> None:
        while True:
            # `open` tries again, and reports the reason
            with suppress(UserError, OSError):
                self._fetch(self.shards[self._wanted.get()])

    def _fetch(self, record: ShardRecord) -> ShardReader:
        self.cache.mkdir(parents=True, exist_ok=True)
        target = self.cache / record.file
        with FileLock(f"{target}{_LOCK}"):
            if not target.is_file() or target.stat().st_size != record.bytes:
                remove_partial(self.cache, target.stem)
                with atomic_file(target) as partial:
                    self._download(record, partial)
            os.utime(target)
            opened = ShardReader(target, record)
        self._remove_oldest()
        return opened

    def _download(self, record: ShardRecord, partial: Path) -> None:
        """Copy a shard and compare it with the index; one byte too many ends the download."""
        digest, size = hashlib.sha256(), 0
        source = f"{self.location}/{record.file}"
        try:
            with fsspec.open(source, "rb") as remote, partial.open("wb") as local:
                while size <= record.bytes and (piece := remote.read(_PIECE)):
                    digest.update(piece)
                    local.write(piece)
                    size += len(piece)
        except FileNotFoundError:
            raise UserError(f"The shard {source} is missing; copy it there again.") from None
        if size != record.bytes or digest.hexdigest() != record.sha256:
            raise UserError(
                f"The shard {source} is cut off or changed ({size:,} bytes read, and "
                f"{record.bytes:,} in the index, or another SHA-256); copy it there again."
            )

    def _remove_oldest(self) -> None:
        fetched = sorted(self.cache.glob("*.tar"), key=_last_used, reverse=True)
        for path in fetched[self.keep :]:
            # one that another process holds is in use after all
            with suppress(Timeout), FileLock(f"{path}{_LOCK}", timeout=0):
                path.unlink(missing_ok=True)


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


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0

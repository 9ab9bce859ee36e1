"""The order of clips over shards, a pure function of the seed and the position.

An epoch is a permutation of all clips that a reader with room for a few shards can follow: shards
are shuffled, every few of them are a window, and clips are shuffled inside the window. Processes
that take positions in turn read in one window, so one cache serves all of a machine.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_SHARDS, _CLIPS = 2, 3


class ShardOrder:
    """The endless order over shards with so many clips each.

    Args:
        counts: Clips of every shard.
        window: How many shards are open at a time.
    """

    def __init__(self, counts: tuple[int, ...], window: int) -> None:
        self.counts, self.window = np.array(counts), window
        self.length = sum(counts)
        self._starts = np.cumsum([0, *counts[:-1]])
        # one for this reader: a cache of the function's would keep every reader alive
        self._shards = lru_cache(maxsize=2)(self._make_shards)
        self._ends = lru_cache(maxsize=2)(self._make_ends)
        self._clips = lru_cache(maxsize=2)(self._make_clips)

    def place(self, seed: int, position: int) -> tuple[int, int, int]:
        """Return the epoch of a position, the window in it, and the place in the window."""
        epoch, place = divmod(position, self.length)
        ends = self._ends(seed, epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        return epoch, window, place - (int(ends[window - 1]) if window else 0)

    def clips(self, seed: int, first: int, count: int) -> list[int]:
        """Return the clips at some positions in a row, numbered through all shards."""
        chosen = []
        for position in range(first, first + count):
            epoch, window, place = self.place(seed, position)
            chosen.append(int(self._clips(seed, epoch, window)[place]))
        return chosen

    def window_shards(self, seed: int, epoch: int, window: int) -> list[int]:
        """Return the shards of a window; one behind the last is the first of the next epoch."""
        if window * self.window >= len(self.counts):
            epoch, window = epoch + 1, 0
        order = self._shards(seed, epoch)
        return order[window * self.window : (window + 1) * self.window].tolist()

    def shard_of(self, clip: int) -> tuple[int, int]:
        """Return the shard of a clip, and the clip's number in it."""
        shard = int(np.searchsorted(self._starts, clip, side="right")) - 1
        return shard, clip - int(self._starts[shard])

    def _make_shards(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((seed, _SHARDS, epoch)).permutation(len(self.counts))

    def _make_ends(self, seed: int, epoch: int) -> NDArray[np.int64]:
        ends = np.cumsum(self.counts[self._shards(seed, epoch)])
        return np.append(ends[self.window - 1 : -1 : self.window], ends[-1])

    def _make_clips(self, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
        shards = self.window_shards(seed, epoch, window)
        clips = np.concatenate([self._starts[n] + np.arange(self.counts[n]) for n in shards])
        return np.random.default_rng((seed, _CLIPS, epoch, window)).permutation(clips)

"""The order of training samples as a pure function of the seed and the position.

Nothing is remembered between batches, so a run that resumes at any step reads what the unbroken run
would have read.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from magicvideo.data.dataset import Batch, ClipDataset, collate
from magicvideo.data.shards.dataset import EncodedBatch, ShardDataset, collate_encoded

_ORDER, _SAMPLE = 0, 1


def indices(
    seed: int, first: int, count: int, length: int, shares: tuple[float, ...] | None = None
) -> list[int]:
    """Return the sample numbers at positions `first` to `first + count - 1` of an endless order.

    Every `length` positions are one epoch, a permutation of all samples. With `shares` that sum to
    1, an epoch has each sample `length * share` times, rounded up or down at random.
    """
    chosen = []
    for position in range(first, first + count):
        epoch, place = divmod(position, length)
        chosen.append(int(_epoch(seed, epoch, length, shares)[place]))
    return chosen


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """Return the random numbers of the sample at this position of the order, and of no other."""
    return np.random.default_rng((seed, _SAMPLE, position))


def read_batch(
    dataset: ClipDataset,
    seed: int,
    step: int,
    batch_size: int,
    num_frames: int,
    strides: tuple[int, int] = (1, 4),
    subject_balance: float = 0.0,
) -> Batch:
    """Return the batch of a step.

    Of several processes, number r of n asks for step `step * n + r`. `subject_balance` is
    explained at `ClipDataset.shares`.
    """
    first = step * batch_size
    shares = dataset.shares(subject_balance) if subject_balance else None
    chosen = indices(seed, first, batch_size, len(dataset), shares)
    return collate(
        [
            dataset.sample(
                index, sample_rng(seed, first + place), num_frames=num_frames, strides=strides
            )
            for place, index in enumerate(chosen)
        ]
    )


def read_encoded_batch(
    dataset: ShardDataset,
    seed: int,
    step: int,
    batch_size: int,
    num_frames: int,
    strides: tuple[int, int] = (1, 4),
) -> EncodedBatch:
    """Return the batch of a step out of shards; steps and processes count as in `read_batch`."""
    first = step * batch_size
    return collate_encoded(
        [
            dataset.sample(
                index, sample_rng(seed, first + place), num_frames=num_frames, strides=strides
            )
            for place, index in enumerate(dataset.indices(seed, first, batch_size))
        ]
    )


@lru_cache(maxsize=4)
def _epoch(
    seed: int, epoch: int, length: int, shares: tuple[float, ...] | None
) -> NDArray[np.int64]:
    rng = np.random.default_rng((seed, _ORDER, epoch))
    order = rng.permutation(length)
    if shares is None:
        return order
    # equal steps over the samples' shares, laid end to end in the permuted order
    ends = np.cumsum(np.array(shares)[order])
    points = (np.arange(length) + rng.random()) * ends[-1] / length
    return rng.permutation(order[np.searchsorted(ends, points, side="right")])

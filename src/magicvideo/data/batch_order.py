"""The order of training samples as a pure function of the seed and the position.

No state is kept between batches, so a run that resumes at any step reads what the unbroken run
would have read, whatever process or worker reads it.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from magicvideo.data.dataset import Batch, ClipDataset, collate, sample_systematically
from magicvideo.data.shards.dataset import EncodedBatch, ShardDataset, collate_encoded

_ORDER, _SAMPLE = 0, 1  # streams of random numbers; 2 and 3 are those of shards


def sample_indices(
    seed: int, first: int, count: int, length: int, weights: tuple[float, ...] | None = None
) -> list[int]:
    """Return the sample numbers at positions `first` to `first + count - 1` of an endless order.

    Every `length` positions are one epoch, a permutation of all samples. With `weights` that sum to
    1, an epoch has each sample `length * weight` times, rounded up or down at random.
    """
    chosen = []
    for position in range(first, first + count):
        epoch, place = divmod(position, length)
        chosen.append(int(_epoch(seed, epoch, length, weights)[place]))
    return chosen


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """Return the random numbers of the sample at this position of the order, and of no other."""
    return np.random.default_rng((seed, _SAMPLE, position))


def load_batch(
    dataset: ClipDataset,
    seed: int,
    step: int,
    batch_size: int,
    num_frames: int,
    strides: tuple[int, int] = (1, 4),
    subject_balance: float = 0.0,
) -> Batch:
    """Return the batch of a step.

    Of several processes, number r of n asks for step `step * n + r`.
    `ClipDataset.sampling_weights` documents `subject_balance`.
    """
    first = step * batch_size
    weights = dataset.sampling_weights(subject_balance) if subject_balance else None
    chosen = sample_indices(seed, first, batch_size, len(dataset), weights)
    return collate(
        [
            dataset.sample(
                index, sample_rng(seed, first + place), num_frames=num_frames, strides=strides
            )
            for place, index in enumerate(chosen)
        ]
    )


def load_encoded_batch(
    dataset: ShardDataset,
    seed: int,
    step: int,
    batch_size: int,
    num_frames: int,
    strides: tuple[int, int] = (1, 4),
    subject_balance: float = 0.0,
) -> EncodedBatch:
    """Return the batch of a step from shards; the arguments are those of `load_batch`."""
    first = step * batch_size
    chosen = dataset.sample_indices(seed, first, batch_size, subject_balance)
    return collate_encoded(
        [
            dataset.sample(
                index, sample_rng(seed, first + place), num_frames=num_frames, strides=strides
            )
            for place, index in enumerate(chosen)
        ]
    )


@lru_cache(maxsize=4)
def _epoch(
    seed: int, epoch: int, length: int, weights: tuple[float, ...] | None
) -> NDArray[np.int64]:
    rng = np.random.default_rng((seed, _ORDER, epoch))
    if weights is None:
        return rng.permutation(length)
    return sample_systematically(np.array(weights), length, rng)

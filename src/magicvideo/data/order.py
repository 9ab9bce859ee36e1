"""The order of training samples as a pure function of the seed and the position.

Nothing is remembered between batches, so a run that resumes at any step reads what the unbroken run
would have read.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from magicvideo.data.dataset import Batch, ClipDataset, collate

_ORDER, _SAMPLE = 0, 1


def indices(seed: int, first: int, count: int, length: int) -> list[int]:
    """Return the sample numbers at positions `first` to `first + count - 1` of an endless order.

    Every `length` positions are one epoch, a permutation of all samples.
    """
    chosen = []
    for position in range(first, first + count):
        epoch, place = divmod(position, length)
        chosen.append(int(_permutation(seed, epoch, length)[place]))
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
) -> Batch:
    """Return the batch of a step.

    Of several processes, number r of n asks for step `step * n + r`.
    """
    first = step * batch_size
    chosen = indices(seed, first, batch_size, len(dataset))
    return collate(
        [
            dataset.sample(
                index, sample_rng(seed, first + place), num_frames=num_frames, strides=strides
            )
            for place, index in enumerate(chosen)
        ]
    )


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)

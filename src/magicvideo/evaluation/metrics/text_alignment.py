"""How well videos match captions: R-precision in pools of captions, and CLIPSIM.

A pool is a row of captions, the own one first. R-precision is the measure of AttnGAN and
HumanML3D.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from magicvideo.errors import UserError


def draw_pools(
    own: Sequence[int], alike: Bool[np.ndarray, "n n"], pool_size: int, seed: int
) -> Int[np.ndarray, "m pool"]:
    """Draw for each number a pool of numbers, the own one in the first column.

    Args:
        own: The number of each row.
        alike: Numbers that cannot be distinguished; they never share a pool with the own one.
        pool_size: Numbers in a pool.
        seed: Of the draw; each row is drawn apart.

    Raises:
        UserError: If fewer different numbers are left than a pool needs.
    """
    pools = np.empty((len(own), pool_size), dtype=np.int64)
    for row, number in enumerate(own):
        order = np.random.default_rng([seed, row]).permutation(len(alike))
        others = order[~alike[number, order] & (order != number)]
        if len(others) < pool_size - 1:
            raise UserError(
                f"A pool of {pool_size} captions needs as many different ones, but there are "
                f"{len(others) + 1}; ask for a smaller pool or prepare more data."
            )
        pools[row] = [number, *others[: pool_size - 1]]
    return pools


def true_ranks(similarity: Float[np.ndarray, "n pool"]) -> Int[np.ndarray, " n"]:
    """Return the rank of the first column in every row, 1 being best.

    A tie counts against the own caption, so a judge that cannot tell captions apart gets nothing.
    """
    rivals = similarity[:, 1:] >= similarity[:, :1]
    ranks: Int[np.ndarray, " n"] = 1 + rivals.sum(axis=1)
    return ranks


def caption_similarity(frames: Float[np.ndarray, "f d"], caption: Float[np.ndarray, " d"]) -> float:
    """Return the cosine of each frame with the caption, mean over the frames.

    The raw cosine, as Video LDM and its successors report it: neither clamped at zero nor times
    100. CLIPSIM of a set is the mean of this over its videos.

    Args:
        frames: Embeddings of frames, of any length.
        caption: The embedding of the caption.
    """
    frames, caption = frames.astype(np.float64), caption.astype(np.float64)
    cosines = frames @ caption / np.linalg.norm(frames, axis=1) / np.linalg.norm(caption)
    return float(cosines.mean())

"""R-precision: does a judge rank a video's own caption first among many?

The measure of AttnGAN and HumanML3D. A pool is a row of caption indices, the own one first.
"""

import numpy as np
from jaxtyping import Float, Int

from magicvideo.errors import UserError


def draw_pools(captions: list[str], pool_size: int, seed: int) -> Int[np.ndarray, "n pool"]:
    """Draw for every caption a pool of different captions, its own in the first column.

    A caption whose wording equals the own one is never drawn against it.

    Raises:
        UserError: If there are fewer different captions than `pool_size`.
    """
    texts = np.array(captions)
    different = len(set(captions))
    if different < pool_size:
        raise UserError(
            f"A pool of {pool_size} captions needs as many different ones, but there are "
            f"{different}; ask for a smaller pool or more prompts."
        )
    pools = np.empty((len(captions), pool_size), dtype=np.int64)
    for own, caption in enumerate(captions):
        order = np.random.default_rng([seed, own]).permutation(len(captions))
        others = order[texts[order] != caption]
        _, first = np.unique(texts[others], return_index=True)
        pools[own] = [own, *others[np.sort(first)][: pool_size - 1]]
    return pools


def true_ranks(similarity: Float[np.ndarray, "n pool"]) -> Int[np.ndarray, " n"]:
    """Return the rank of the first column in every row, 1 being best.

    A tie counts against the own caption, so a judge that cannot tell captions apart gets nothing.
    """
    rivals = similarity[:, 1:] >= similarity[:, :1]
    ranks: Int[np.ndarray, " n"] = 1 + rivals.sum(axis=1)
    return ranks

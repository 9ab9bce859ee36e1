"""How well videos match captions: R-precision in pools of captions, and CLIPSIM.

A pool is a row of caption indices, the own one first. R-precision is the measure of AttnGAN and
HumanML3D.
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

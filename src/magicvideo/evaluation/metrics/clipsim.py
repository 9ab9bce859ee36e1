"""CLIPSIM: how well each frame of a video fits its caption."""

import numpy as np
from jaxtyping import Float


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

"""Which frames of a clip make a training sample: a random rate and a random start."""

import numpy as np
from numpy.typing import NDArray


def choose_frames(
    length: int,
    num_frames: int,
    strides: tuple[int, int],
    rng: np.random.Generator,
    *,
    loops: bool,
) -> tuple[NDArray[np.intp], int]:
    """Choose `num_frames` evenly spaced frames of a clip that has `length`.

    The stride is drawn from `strides` (both ends included) among those at which the frames fit, and
    the start among those that then remain. Where not even stride 1 fits, the clip starts at its
    first frame and either goes round (`loops`) or holds its last frame, at the lowest stride.

    Returns:
        The frame numbers, and the stride between them.
    """
    lowest, highest = strides
    fitting = (length - 1) // (num_frames - 1) if num_frames > 1 else highest
    if fitting < 1:
        steps = np.arange(num_frames)
        return (steps % length if loops else np.minimum(steps, length - 1)), 1
    highest = min(highest, fitting)
    stride = int(rng.integers(min(lowest, highest), highest + 1))
    start = int(rng.integers(length - (num_frames - 1) * stride))
    return start + stride * np.arange(num_frames), stride

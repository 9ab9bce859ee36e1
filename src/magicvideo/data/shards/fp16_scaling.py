"""Half precision that rounds and loses nothing else: a scale for each array, a power of two."""

import math

import numpy as np
import torch
from jaxtyping import Float, Float16
from numpy.typing import NDArray
from torch import Tensor

_HIGHEST = 15  # exponent of the largest number; float16 ends at 2**16
_LOWEST = -126  # exponent of the least scale that is a normal float32


def pack(values: Float[np.ndarray, "..."]) -> tuple[Float16[np.ndarray, "..."], float]:
    """Return values as float16, and what they have to be multiplied with to be themselves.

    The largest comes to lie in the upper two octaves of float16. So nothing overflows, and what is
    rounded to less than 11 bits is smaller than it by 2**-28. Since the scale is a power of two, it
    adds no rounding of its own. It stays a normal float32, so that digits are lost where all values
    are below 2**-110.
    """
    largest = float(np.abs(values).max(initial=0.0))
    scale = 2.0 ** max(math.frexp(largest)[1] - _HIGHEST, _LOWEST)
    return (values / np.float32(scale)).astype(np.float16), scale


def unpack(stored: NDArray[np.float16], scale: float) -> Float[Tensor, "..."]:
    """Return packed values in single precision."""
    return torch.from_numpy(stored.astype(np.float32)).mul_(scale)

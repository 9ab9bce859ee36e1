"""Noise that belongs to a video, not to the batch that it was made in."""

import hashlib

import torch
from torch import Tensor


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a generator on the CPU whose stream is a pure function of `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise_for(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise of one video, the same on every machine for the same seed."""
    return torch.randn(shape, generator=generator_for("video", seed))

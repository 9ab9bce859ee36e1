"""Random numbers for a batch in which every sample has its own generator."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class StackedGenerator:
    """One `torch.Generator` per sample, so that samples do not depend on batch or process.

    EDM calls the same idea `StackedRandomGenerator`.

    Args:
        streams: One generator per sample, on the CPU. A single one serves batches of any size,
            whose numbers then do depend on the batch.
    """

    def __init__(self, streams: Sequence[torch.Generator]) -> None:
        self._streams = tuple(streams)

    def uniform(self, count: int) -> Float[Tensor, " n"]:
        """Return `count` uniform numbers in [0, 1), an equal number from each generator."""
        return self._fill(torch.empty(count), lambda rows, stream: rows.uniform_(generator=stream))

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "..."]:
        """Return standard normal numbers; the generators split the first axis evenly, in order."""
        return self._fill(torch.empty(*shape), lambda rows, stream: rows.normal_(generator=stream))

    def integers(self, end: int, count: int) -> Int[Tensor, " n"]:
        """Return `count` integers in [0, end), an equal number from each generator."""
        drawn = torch.empty(count, dtype=torch.long)
        return self._fill(drawn, lambda rows, stream: rows.random_(0, end, generator=stream))

    def select(self, chosen: Bool[Tensor, " n"]) -> "StackedGenerator":
        """Return the generators of some samples; those of the others do not advance."""
        if len(self._streams) == 1:
            return self
        pairs = zip(self._streams, chosen.tolist(), strict=True)
        return StackedGenerator([stream for stream, is_chosen in pairs if is_chosen])

    def spawn(self, count: int) -> "StackedGenerator":
        """Return `count` new generators, seeded by the generators of the samples in order.

        New generator i belongs to sample i * n // count of the n samples, so that several processes
        that share a batch spawn what one process spawns.
        """
        parents = [self._streams[i * len(self._streams) // count] for i in range(count)]
        seeds = [int(torch.randint(1 << 62, (), generator=parent)) for parent in parents]
        return StackedGenerator([torch.Generator().manual_seed(seed) for seed in seeds])

    def _fill(self, numbers: Tensor, draw: Callable[[Tensor, torch.Generator], object]) -> Tensor:
        if len(numbers) % len(self._streams):
            raise ValueError(
                f"{len(numbers)} rows are not the same for {len(self._streams)} streams"
            )
        parts = numbers.chunk(len(self._streams))
        for rows, stream in zip(parts, self._streams, strict=True):
            draw(rows, stream)
        return numbers

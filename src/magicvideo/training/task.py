"""What a stage is to the loop: a network, its batches, and losses for a batch."""

from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from magicvideo.data.dataset import Batch
from magicvideo.data.shards.dataset import EncodedBatch
from magicvideo.rng import StackedGenerator

AnyBatch: TypeAlias = Batch | EncodedBatch


@runtime_checkable
class Task(Protocol):
    """One stage of training. The loop knows no more of it than this."""

    @property
    def network(self) -> nn.Module:
        """Return what is trained, averaged and saved."""

    def get_batch(self, position: int) -> AnyBatch:
        """Return the batch at a position of the endless order of batches."""

    def losses(
        self,
        network: nn.Module,
        batch: Any,  # noqa: ANN401 (each stage has its own kind)
        generator: StackedGenerator,
    ) -> dict[str, Tensor]:
        """Return `loss`, which is minimised, and the parts that are logged beside it.

        Args:
            network: `self.network`, possibly wrapped for several processes.
            batch: From `read`, on any device.
            generator: The only source of random numbers, one stream a sample.
        """

    def preview(self) -> Image.Image | None:
        """Return a picture of what `self.network` can do, or None where there is none to show."""

    def save(self, folder: Path) -> None:
        """Write the stage's product, as components of a model folder."""

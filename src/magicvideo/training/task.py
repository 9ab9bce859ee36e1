"""What a stage is to the trainer: a network, its batches, and losses for a batch."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from magicvideo.rng import StackedGenerator
from magicvideo.training.loader import BatchSource


@runtime_checkable
class Task(Protocol):
    """One stage of training. The trainer knows no more of it than this."""

    @property
    def network(self) -> nn.Module:
        """Return what is trained, averaged and saved."""

    @property
    def batches(self) -> BatchSource:
        """Return the batches that it is trained on."""

    def lr_scale(self, name: str) -> float:
        """Return the factor on the learning rate of a parameter, by its name in `network`."""

    def losses(
        self,
        network: nn.Module,
        batch: Any,  # noqa: ANN401 (each stage has its own kind)
        generator: StackedGenerator,
    ) -> dict[str, Tensor]:
        """Return `loss`, which is minimised, and the parts that are logged beside it.

        Nothing in it waits for the device, so that it runs on the meta device too, where a dry run
        counts what it computes.

        Args:
            network: `self.network`, possibly wrapped for several processes.
            batch: From `batches`, on any device.
            generator: The only source of random numbers, one stream a sample.
        """

    def preview(self) -> Image.Image | None:
        """Return a picture of what `self.network` can do, or None where there is none to show."""

    def save(self, folder: Path) -> None:
        """Write the stage's output, as components of a model folder."""

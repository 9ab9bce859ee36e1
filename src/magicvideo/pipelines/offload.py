"""Networks of a model folder that are in memory only while a stage needs them."""

from pathlib import Path

import torch

from magicvideo.pipelines.loading import Network, component_from_config_meta, load_component
from magicvideo.pipelines.model_folder import ModelIndex


class LazyComponentLoader:
    """Loads networks of a checked model folder one by one.

    Args:
        folder: The model folder.
        index: Its index.
        dtype: Of the weights in memory.
        device: Where they go.
    """

    def __init__(
        self, folder: Path, index: ModelIndex, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.folder, self.dtype, self.device = folder, dtype, device
        self.classes = index.networks()

    def outline(self, name: str) -> Network:
        """Return a network without its weights: it tells its settings and fills no memory."""
        return component_from_config_meta(self.folder, name, self.classes[name], self.dtype)

    def load(self, name: str) -> Network:
        """Return a network with its weights.

        Raises:
            UserError: If a tensor does not fit. It names the tensor.
        """
        network = load_component(self.folder, name, self.classes[name], self.dtype)
        return network.to(self.device)

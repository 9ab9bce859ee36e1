"""Initialize a video network from an image network; every key is checked."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from magicvideo.errors import UserError

_NEW = (
    "adaptor",
    "temporal",
    "fps_embedding",
    "level_embedding",
    "motion_embedding",
    "interval_embedding",
)


@dataclass(frozen=True)
class InflationReport:
    """The copied and the new keys.

    Attributes:
        copied: Names of tensors copied from the image network.
        new: Names of tensors that only the video network has; they keep their initial values.
    """

    copied: list[str]
    new: list[str]


@torch.no_grad()
def inflate(network: nn.Module, image_weights: Mapping[str, Tensor]) -> InflationReport:
    """Copy an image network's weights into a video network.

    Source: MagicVideo initializes its denoiser from a text-to-image model. The video network then
    equals the image network frame by frame.

    Args:
        network: A newly built `VideoUNet` or `VideoAutoencoder`. Tensors that only it has are
            unchanged.
        image_weights: State dict of a diffusers `UNet2DConditionModel`, of a `VideoUNet` without
            temporal attention and adaptors, or of an image autoencoder.

    Raises:
        UserError: If a tensor is unknown, missing or of another shape. Nothing is copied then.
    """
    own = network.state_dict()
    for name, tensor in image_weights.items():
        if name not in own:
            raise UserError(f"{name} of the image network does not exist in the video network.")
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{name} has the shape {list(tensor.shape)} in the image network and "
                f"{list(own[name].shape)} in the video network; their settings must agree."
            )
    new = [name for name in own if name not in image_weights]
    if missing := [name for name in new if not is_temporal_key(name)]:
        raise UserError(f"The image network lacks {missing[0]}, which the video network needs.")
    for name, tensor in image_weights.items():
        own[name].copy_(tensor)
    return InflationReport(copied=list(image_weights), new=new)


def is_temporal_key(name: str) -> bool:
    """Return whether a tensor exists only in video networks."""
    return any(part in name for part in _NEW)

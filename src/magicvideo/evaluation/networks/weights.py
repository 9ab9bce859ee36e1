"""Weights as safetensors for a feature network whose architecture is written here."""

from typing import TypeVar

from safetensors.torch import load_file
from torch import nn

from magicvideo.evaluation.networks.files import ResolvedFile
from magicvideo.pipelines.model_folder import check_keys, read_safetensors_header

SUFFIX = ".safetensors"

_COUNTER = ".num_batches_tracked"  # of training; published files have it or not

Network = TypeVar("Network", bound=nn.Module)
Entry = TypeVar("Entry")


def load_weights(network: Network, located: ResolvedFile) -> Network:
    """Fill a network from a safetensors file, every tensor of both accounted for.

    Args:
        network: Of the architecture that the file should hold; it may be on the meta device.
        located: The file. Half precision becomes single.

    Raises:
        UserError: If the file is no safetensors file, or a tensor is missing, foreign or of another
            shape.
    """
    stored = _without_counters(read_safetensors_header(located.path))
    expected = _without_counters(network.state_dict())
    check_keys(located.path, stored, {name: tuple(x.shape) for name, x in expected.items()})
    tensors = {name: x.float() for name, x in load_file(located.path).items() if name in expected}
    network.to_empty(device="cpu").load_state_dict(tensors, strict=False)
    return network.eval().requires_grad_(False)


def _without_counters(tensors: dict[str, Entry]) -> dict[str, Entry]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}

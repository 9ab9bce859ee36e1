"""What a network would cost with other convolutions than shared 2D ones with adaptors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import nn

from magicvideo.models.adaptor import FrameAdaptor
from magicvideo.models.flops import count_flops, count_parameters
from magicvideo.models.temporal_conv import ConvType
from studies.cost.networks import NETWORKS, OURS, Workload, make_inputs

Kind: TypeAlias = Literal["2D", "2D + adaptor", "2+1D", "3D"]
_CONVOLUTIONS: Mapping[Kind, ConvType] = {
    "2D": "2d",
    "2D + adaptor": "2d",
    "2+1D": "2+1d",
    "3D": "3d",
}


@dataclass(frozen=True)
class ConvolutionCost:
    """The cost of a network with one kind of 3x3 convolution.

    Attributes:
        kind: What stands at every 3x3 convolution.
        kernel_parameters: Of what stands there, adaptors included.
        kernel_flops: Of the same.
        parameters: Of the whole network.
        flops: Of the whole network.
    """

    kind: Kind
    kernel_parameters: int
    kernel_flops: int
    parameters: int
    flops: int


def cost_of(kind: Kind, work: Workload) -> ConvolutionCost:
    """Return what our network costs with one kind of convolution; it keeps its attentions.

    The network is built on the meta device.
    """
    config = {
        **work.config,
        "frame_adaptor": kind == "2D + adaptor",
        "convolutions": _CONVOLUTIONS[kind],
    }
    network = NETWORKS[OURS].build(replace(work, config=config))
    places = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    adaptors = [module for module in network.modules() if isinstance(module, FrameAdaptor)]
    # the counter sees matrix products alone
    adapted: list[int] = []
    for adaptor in adaptors:
        adaptor.register_forward_hook(lambda _, __, made: adapted.append(2 * made.numel()))
    given = make_inputs(work, "meta")
    counted = count_flops(network, lambda: NETWORKS[OURS].call(network, given))
    kernels = [network.get_submodule(name) for name in places]
    return ConvolutionCost(
        kind=kind,
        kernel_parameters=sum(map(count_parameters, [*kernels, *adaptors])),
        kernel_flops=sum(counted.by_module[f"VideoUNet.{name}"] for name in places) + sum(adapted),
        parameters=count_parameters(network),
        flops=counted.total + sum(adapted),
    )

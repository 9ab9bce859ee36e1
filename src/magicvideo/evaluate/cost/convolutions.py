"""What a network would cost with other convolutions than shared 2D ones with adaptors."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from magicvideo.evaluate.cost.networks import NETWORKS, OURS, Workload, make_inputs
from magicvideo.models.adaptor import FrameAdaptor
from magicvideo.models.counting import count_flops, count_parameters
from magicvideo.shapes import FoldedFrames

Kind: TypeAlias = Literal["2D", "2D + adaptor", "2+1D", "3D"]
_TAPS = 3  # of a temporal kernel


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


class VideoConv(nn.Module):
    """A convolution over space and time in the place of a 2D one, on frames folded into the batch.

    Args:
        conv: The 2D convolution whose place it takes.
        num_frames: Frames of a video.
        kind: `3D` has a kernel of 3x3x3; `2+1D` the 2D one, then one of 3 frames.
    """

    def __init__(self, conv: nn.Conv2d, num_frames: int, kind: Kind) -> None:
        super().__init__()
        channels, self.num_frames = conv.out_channels, num_frames
        height, width = conv.kernel_size
        stride = (1, conv.stride[0], conv.stride[1])
        taps = _TAPS if kind == "3D" else 1
        self.layers = nn.Sequential(
            nn.Conv3d(
                conv.in_channels,
                channels,
                (taps, height, width),
                stride,
                (taps // 2, height // 2, width // 2),
            )
        )
        if kind == "2+1D":
            self.layers.append(
                nn.Conv3d(channels, channels, (_TAPS, 1, 1), padding=(_TAPS // 2, 0, 0))
            )

    def forward(self, x: FoldedFrames) -> Float[Tensor, "n _ _ _"]:
        """Return the convolution of the videos that x folds."""
        videos = rearrange(x, "(b f) c h w -> b c f h w", f=self.num_frames)
        return rearrange(self.layers(videos), "b c f h w -> (b f) c h w")


def cost_of(kind: Kind, work: Workload) -> ConvolutionCost:
    """Return what our network costs with one kind of convolution; it keeps its attentions.

    The network is built on the meta device.
    """
    config = {**work.config, "frame_adaptor": kind == "2D + adaptor"}
    network = NETWORKS[OURS].build(replace(work, config=config))
    places = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    if kind in ("2+1D", "3D"):
        for name in places:
            conv = network.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            network.set_submodule(name, VideoConv(conv, work.frames, kind))
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

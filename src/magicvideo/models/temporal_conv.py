"""Convolutions along time, in the place of shared 2D ones with adaptors: the paper's ablation.

The 2D kernel keeps its name and its shape, so that weights of an image network load into each of
these. What is new has `temporal` in its name, and is neutral at the start.
"""

from typing import Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.shapes import FoldedFrames

ConvType: TypeAlias = Literal["2d", "2+1d", "3d"]
Convolved: TypeAlias = Float[Tensor, "n _ _ _"]  # other channels, maybe another side


class InflatedConv3d(nn.Conv2d):
    """A kernel of 3x3x3. One slice is the 2D kernel; the other two are zero at the start.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: In space.
        causal: Whether the two other frames that it sees are those before, so that no frame
            depends on a later one; else the frame before and the frame after. Beyond the video
            all is zero.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, causal: bool) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)
        self.shifts = _shifts(causal=causal)
        # four axes, since the memory order of networks in training knows no other kernels
        shape = (len(self.shifts) * out_channels, in_channels, 3, 3)
        self.temporal_weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: FoldedFrames, num_frames: int) -> Convolved:  # type: ignore[override]
        """Return the convolution of videos of `num_frames` frames."""
        kernels = torch.cat([self.weight, self.temporal_weight])
        taps = F.conv2d(x, kernels, None, self.stride, self.padding)
        assert self.bias is not None
        return _gather(taps, num_frames, self.shifts) + self.bias[:, None, None]


class Conv2Plus1d(nn.Conv2d):
    """The 2D convolution, then one over three frames that is the identity at the start (2+1D).

    Its arguments are those of `InflatedConv3d`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, causal: bool) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)
        self.shifts = _shifts(causal=causal)
        itself = torch.eye(out_channels)
        others = torch.zeros(len(self.shifts) * out_channels, out_channels)
        self.temporal_weight = nn.Parameter(torch.cat([itself, others]))
        self.temporal_bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: FoldedFrames, num_frames: int) -> Convolved:  # type: ignore[override]
        """Return the convolution of videos of `num_frames` frames."""
        rows = rearrange(super().forward(x), "n c h w -> n h w c")
        taps = rearrange(F.linear(rows, self.temporal_weight), "n h w c -> n c h w")
        return _gather(taps, num_frames, self.shifts) + self.temporal_bias[:, None, None]


def build_conv(
    kind: ConvType, in_channels: int, out_channels: int, *, stride: int = 1, causal: bool
) -> nn.Conv2d:
    """Return a 3x3 convolution of one kind."""
    if kind == "3d":
        return InflatedConv3d(in_channels, out_channels, stride, causal=causal)
    if kind == "2+1d":
        return Conv2Plus1d(in_channels, out_channels, stride, causal=causal)
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def apply_conv(layer: nn.Module, x: FoldedFrames, num_frames: int) -> Convolved:
    """Return the convolution of videos by a layer of any kind."""
    if isinstance(layer, InflatedConv3d | Conv2Plus1d):
        return layer(x, num_frames)
    return layer(x)


def _shifts(*, causal: bool) -> tuple[int, int]:
    """Return how many frames before a frame its two neighbours are."""
    return (1, 2) if causal else (1, -1)


def _gather(taps: Convolved, num_frames: int, shifts: tuple[int, int]) -> Convolved:
    """Sum what each frame gives to itself and, in the other channels, to its neighbours."""
    # channels last, where slices of frames are adjacent memory
    rows = rearrange(taps, "(b f) c h w -> b f h w c", f=num_frames)
    total, *others = rows.chunk(1 + len(shifts), dim=-1)
    for other, shift in zip(others, shifts, strict=True):
        total = total + _shifted(other, shift)
    return rearrange(total, "b f h w c -> (b f) c h w")


def _shifted(x: Float[Tensor, "b f h w c"], shift: int) -> Float[Tensor, "b f h w c"]:
    """Return each frame's neighbour: `shift` frames before it, or after it where negative."""
    far = min(abs(shift), x.shape[1])
    if shift > 0:
        return F.pad(x[:, : x.shape[1] - far], (0, 0, 0, 0, 0, 0, far, 0))
    return F.pad(x[:, far:], (0, 0, 0, 0, 0, 0, 0, far))

"""I3D of Kinetics-400 by the names of pytorch-i3d, up to the logits that FVD is taken on.

Source: Carreira and Zisserman 2017 (1705.07750), and the state dict `i3d_pretrained_400.pt` of
VideoGPT and cd-fvd, which is TensorFlow Hub's network of the first FVD. The file `rgb_imagenet.pt`
has the same names and other weights; it is not a network for FVD.
"""

from typing import TypeAlias

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_CLASSES = 400
_EPSILON = 1e-5  # as VideoGPT and cd-fvd read the file, which does not hold it

_Size: TypeAlias = tuple[int, int, int]
"""Frames, rows and columns."""
_Widths: TypeAlias = tuple[int, int, int, int, int, int]
"""Channels of the units b0, b1a, b1b, b2a, b2b and b3b of a mixed step."""


class KineticsI3d(nn.Module):
    """A clip to 400 logits, their mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = _steps()
        for name, step in self._steps.items():
            self.add_module(name, step)
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, _CLASSES, 1)})

    def forward(self, clip: Float[Tensor, "b 3 f 224 224"]) -> Float[Tensor, "b classes"]:
        """Return the logits of clips of pixels in [-1, 1], of nine frames or more."""
        x = clip
        for step in self._steps.values():
            x = step(x)
        x = self.logits["conv3d"](F.avg_pool3d(x, (2, 7, 7), stride=1))
        return reduce(x, "b classes f 1 1 -> b classes", "mean")


def _steps() -> dict[str, nn.Module]:
    halved = (1, 2, 2)
    return {
        "Conv3d_1a_7x7": _Unit(3, 64, (7, 7, 7), (2, 2, 2)),
        "MaxPool3d_2a_3x3": _Maximum((1, 3, 3), halved),
        "Conv3d_2b_1x1": _Unit(64, 64),
        "Conv3d_2c_3x3": _Unit(64, 192, (3, 3, 3)),
        "MaxPool3d_3a_3x3": _Maximum((1, 3, 3), halved),
        "Mixed_3b": _Mixed(192, (64, 96, 128, 16, 32, 32)),
        "Mixed_3c": _Mixed(256, (128, 128, 192, 32, 96, 64)),
        "MaxPool3d_4a_3x3": _Maximum((3, 3, 3), (2, 2, 2)),
        "Mixed_4b": _Mixed(480, (192, 96, 208, 16, 48, 64)),
        "Mixed_4c": _Mixed(512, (160, 112, 224, 24, 64, 64)),
        "Mixed_4d": _Mixed(512, (128, 128, 256, 24, 64, 64)),
        "Mixed_4e": _Mixed(512, (112, 144, 288, 32, 64, 64)),
        "Mixed_4f": _Mixed(528, (256, 160, 320, 32, 128, 128)),
        "MaxPool3d_5a_2x2": _Maximum((2, 2, 2), (2, 2, 2)),
        "Mixed_5b": _Mixed(832, (256, 160, 320, 32, 128, 128)),
        "Mixed_5c": _Mixed(832, (384, 192, 384, 48, 128, 128)),
    }


class _Unit(nn.Module):
    def __init__(
        self, channels: int, width: int, window: _Size = (1, 1, 1), stride: _Size = (1, 1, 1)
    ) -> None:
        super().__init__()
        self._window, self._stride = window, stride
        self.conv3d = nn.Conv3d(channels, width, window, stride, bias=False)
        self.bn = nn.BatchNorm3d(width, eps=_EPSILON)

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b d frames rows columns"]:
        return F.relu(self.bn(self.conv3d(_pad_same(x, self._window, self._stride))))


class _Maximum(nn.Module):
    """All that comes here is positive, so zeros around it change no maximum."""

    def __init__(self, window: _Size, stride: _Size) -> None:
        super().__init__()
        self._window, self._stride = window, stride

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c frames rows columns"]:
        return F.max_pool3d(_pad_same(x, self._window, self._stride), self._window, self._stride)


class _Mixed(nn.Module):
    def __init__(self, channels: int, widths: _Widths) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = _Unit(channels, b0)
        self.b1a, self.b1b = _Unit(channels, b1a), _Unit(b1a, b1b, (3, 3, 3))
        self.b2a, self.b2b = _Unit(channels, b2a), _Unit(b2a, b2b, (3, 3, 3))
        self.b3a, self.b3b = _Maximum((3, 3, 3), (1, 1, 1)), _Unit(channels, b3b)

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b d f h w"]:
        first, second = self.b1b(self.b1a(x)), self.b2b(self.b2a(x))
        return torch.cat([self.b0(x), first, second, self.b3b(self.b3a(x))], dim=1)


def _pad_same(
    x: Float[Tensor, "b c f h w"], window: _Size, stride: _Size
) -> Float[Tensor, "b c frames rows columns"]:
    """Add zeros as TensorFlow's SAME does: just enough for every place, an odd one at the end."""
    padding: list[int] = []
    for size, width, step in zip(x.shape[2:], window, stride, strict=True):
        total = max(width - (size % step or step), 0)
        padding = [total // 2, total - total // 2, *padding]
    return F.pad(x, padding)

"""Inception-v3 of FID: TensorFlow's release of 2015-12-05, with 1008 classes.

The names are those of the state dict that pytorch-fid and torch-fidelity load. It is not
torchvision's network: averages leave the padding out, the last block takes a maximum where the
others average, and pictures are resized by the weights of TensorFlow 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299
_FEATURES, _CLASSES = 2048, 1008
_EPSILON = 1e-3  # TensorFlow's; it is not in the file

Pool: TypeAlias = Literal["average", "maximum", "stride"]
"""Of a block's last branch: of 3 x 3 in place, or the maximum at every second place."""


@dataclass(frozen=True)
class _Unit:
    """A convolution with what follows it: its name, channels, and window."""

    name: str
    width: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


_Fork: TypeAlias = tuple[_Unit, _Unit]
_Branch: TypeAlias = tuple[_Unit | _Fork, ...]


class FidInception(nn.Module):
    """Frames to 2048 features after the last pooling, and to probabilities of classes."""

    def __init__(self) -> None:
        super().__init__()
        self._stem = (
            _Unit("Conv2d_1a_3x3", 32, (3, 3), stride=2, padded=False),
            _Unit("Conv2d_2a_3x3", 32, (3, 3), padded=False),
            _Unit("Conv2d_2b_3x3", 64, (3, 3)),
            None,
            _Unit("Conv2d_3b_1x1", 80),
            _Unit("Conv2d_4a_3x3", 192, (3, 3), padded=False),
            None,
        )
        channels = 3
        for unit in filter(None, self._stem):
            self.add_module(unit.name, _Convolution(channels, unit))
            channels = unit.width
        blocks = {}
        for name, branches, pool, pooled in _blocks():
            blocks[name] = _Block(channels, branches, pool, pooled)
            channels = blocks[name].width
            self.add_module(name, blocks[name])
        self._names = tuple(blocks)
        self.fc = nn.Linear(_FEATURES, _CLASSES)

    def forward(
        self, frames: UInt8[Tensor, "f 3 h w"]
    ) -> tuple[Float[Tensor, "f features"], Float[Tensor, "f classes"]]:
        """Return the features of frames of any size, and the probabilities of classes.

        These are without the bias of the last layer: the first Inception Score left it out, and so
        do the implementations since.
        """
        x = (resize_as_tensorflow(frames.float(), SIDE) - 128) / 128
        for unit in self._stem:
            x = F.max_pool2d(x, 3, stride=2) if unit is None else self.get_submodule(unit.name)(x)
        for name in self._names:
            x = self.get_submodule(name)(x)
        features = x.mean(dim=(2, 3))
        return features, F.linear(features, self.fc.weight).softmax(dim=1)


class _Convolution(nn.Module):
    def __init__(self, channels: int, unit: _Unit) -> None:
        super().__init__()
        rows, columns = unit.window
        self.conv = nn.Conv2d(
            channels,
            unit.width,
            unit.window,
            stride=unit.stride,
            padding=(rows // 2, columns // 2) if unit.padded else 0,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(unit.width, eps=_EPSILON)

    def forward(self, x: Float[Tensor, "f c h w"]) -> Float[Tensor, "f d rows columns"]:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Branches side by side, the last of which pools; a branch may fork at its end."""

    def __init__(
        self, channels: int, branches: Sequence[_Branch], pool: Pool, pooled: int | None
    ) -> None:
        super().__init__()
        self._branches, self._pool = branches, pool
        ends = []
        for branch in branches:
            width = channels
            for step in branch:
                units = _units(step)
                for unit in units:
                    self.add_module(unit.name, _Convolution(width, unit))
                width = sum(unit.width for unit in units)
            ends.append(width)
        if pooled is not None:
            self.branch_pool = _Convolution(channels, _Unit("branch_pool", pooled))
        self.width = sum(ends) + (pooled or channels)

    def forward(self, x: Float[Tensor, "f c h w"]) -> Float[Tensor, "f d rows columns"]:
        return torch.cat(
            [*(self._follow(branch, x) for branch in self._branches), self._pooled(x)], 1
        )

    def _follow(self, branch: _Branch, x: Tensor) -> Tensor:
        for step in branch:
            x = torch.cat([self.get_submodule(unit.name)(x) for unit in _units(step)], dim=1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self._pool == "stride":
            return F.max_pool2d(x, 3, stride=2)
        if self._pool == "maximum":
            around = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            around = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return self.branch_pool(around)


def resize_as_tensorflow(
    frames: Float[Tensor, "f c h w"], side: int
) -> Float[Tensor, "f c side side"]:
    """Resize by bilinear weights, as TensorFlow 1 did: corners of pixels for centres, no antialias.

    A pixel reads place k * size / side, so that the first reads the first and the last none beyond
    the edge. Torch's own reads (k + 0.5) * size / side - 0.5.
    """
    for axis in (2, 3):
        size = frames.shape[axis]
        places = torch.arange(side, device=frames.device) * (size / side)
        low = places.long()
        share = (places - low).view(-1, 1) if axis == 2 else places - low
        first = frames.index_select(axis, low)
        frames = first + (frames.index_select(axis, (low + 1).clamp(max=size - 1)) - first) * share
    return frames


def _units(step: _Unit | _Fork) -> tuple[_Unit, ...]:
    return (step,) if isinstance(step, _Unit) else step


def _blocks() -> list[tuple[str, Sequence[_Branch], Pool, int | None]]:
    """Return each block: its name, branches, pooling, and channels after the pooling."""
    return [
        ("Mixed_5b", _fives(), "average", 32),
        ("Mixed_5c", _fives(), "average", 64),
        ("Mixed_5d", _fives(), "average", 64),
        ("Mixed_6a", _to_sixes(), "stride", None),
        ("Mixed_6b", _sixes(128), "average", 192),
        ("Mixed_6c", _sixes(160), "average", 192),
        ("Mixed_6d", _sixes(160), "average", 192),
        ("Mixed_6e", _sixes(192), "average", 192),
        ("Mixed_7a", _to_sevens(), "stride", None),
        ("Mixed_7b", _sevens(), "average", 192),
        ("Mixed_7c", _sevens(), "maximum", 192),
    ]


def _fives() -> Sequence[_Branch]:
    return (
        (_Unit("branch1x1", 64),),
        (_Unit("branch5x5_1", 48), _Unit("branch5x5_2", 64, (5, 5))),
        (
            _Unit("branch3x3dbl_1", 64),
            _Unit("branch3x3dbl_2", 96, (3, 3)),
            _Unit("branch3x3dbl_3", 96, (3, 3)),
        ),
    )


def _to_sixes() -> Sequence[_Branch]:
    return (
        (_Unit("branch3x3", 384, (3, 3), stride=2, padded=False),),
        (
            _Unit("branch3x3dbl_1", 64),
            _Unit("branch3x3dbl_2", 96, (3, 3)),
            _Unit("branch3x3dbl_3", 96, (3, 3), stride=2, padded=False),
        ),
    )


def _sixes(width: int) -> Sequence[_Branch]:
    return (
        (_Unit("branch1x1", 192),),
        (
            _Unit("branch7x7_1", width),
            _Unit("branch7x7_2", width, (1, 7)),
            _Unit("branch7x7_3", 192, (7, 1)),
        ),
        (
            _Unit("branch7x7dbl_1", width),
            _Unit("branch7x7dbl_2", width, (7, 1)),
            _Unit("branch7x7dbl_3", width, (1, 7)),
            _Unit("branch7x7dbl_4", width, (7, 1)),
            _Unit("branch7x7dbl_5", 192, (1, 7)),
        ),
    )


def _to_sevens() -> Sequence[_Branch]:
    return (
        (_Unit("branch3x3_1", 192), _Unit("branch3x3_2", 320, (3, 3), stride=2, padded=False)),
        (
            _Unit("branch7x7x3_1", 192),
            _Unit("branch7x7x3_2", 192, (1, 7)),
            _Unit("branch7x7x3_3", 192, (7, 1)),
            _Unit("branch7x7x3_4", 192, (3, 3), stride=2, padded=False),
        ),
    )


def _sevens() -> Sequence[_Branch]:
    return (
        (_Unit("branch1x1", 320),),
        (
            _Unit("branch3x3_1", 384),
            (_Unit("branch3x3_2a", 384, (1, 3)), _Unit("branch3x3_2b", 384, (3, 1))),
        ),
        (
            _Unit("branch3x3dbl_1", 448),
            _Unit("branch3x3dbl_2", 384, (3, 3)),
            (_Unit("branch3x3dbl_3a", 384, (1, 3)), _Unit("branch3x3dbl_3b", 384, (3, 1))),
        ),
    )

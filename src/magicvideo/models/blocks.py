"""The blocks of the video U-Net: 2D convolutions with adaptors, spatial and temporal attention.

Source: MagicVideo, Figure 3. Parameters shared with the image network have the names of diffusers'
`UNet2DConditionModel`. Names of parameters that only the video network has contain `adaptor` or
`temporal`.

The temporal convolutions (`2+1d` and `3d`) are for the paper's ablation of the adaptors.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from magicvideo.models.adaptor import build_adaptor
from magicvideo.models.attention import SpatialTransformer
from magicvideo.models.temporal_attention import (
    DirectedTemporalAttention,
    KVCache,
    TemporalMode,
)
from magicvideo.shapes import FoldedFrames, Tokens

ConvType: TypeAlias = Literal["2d", "2+1d", "3d"]
Convolved: TypeAlias = Float[Tensor, "n _ _ _"]  # other channels, possibly another side


class FrameConv2d(nn.Conv2d):
    """A 2D convolution shared by all frames, followed by an adaptor (MagicVideo, Figure 3b).

    `forward` takes `num_frames` like the temporal convolutions below, so that blocks call all of
    them in the same way. The constructor is that of `nn.Conv2d`, which peft uses to create adapter
    layers.
    """

    def forward(self, x: FoldedFrames, num_frames: int = 1) -> Convolved:  # noqa: ARG002
        """Return the convolution of each frame."""
        return super().forward(x)


class InflatedConv3d(nn.Conv2d):
    """A 3x3x3 kernel: y_i = W_0 * x_i + W_1 * x_(i-s) + W_2 * x_(i-t) + bias.

    W_0 has the name of the 2D kernel, so image weights load by name. W_1 and W_2 start as zero, so
    the network starts as the image network.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Spatial stride; the temporal stride is 1.
        causal: True for the two previous frames (s, t = 1, 2), so that no frame depends on later
            ones; False for the previous and the next frame (s, t = 1, -1). Frames outside the video
            count as zero.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, causal: bool) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)
        self.shifts = _shifts(causal=causal)
        # W_1 and W_2, stacked along the output channels. The weight has four axes, not five,
        # because torch's channels_last memory format needs four.
        shape = (len(self.shifts) * out_channels, in_channels, 3, 3)
        self.temporal_weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: FoldedFrames, num_frames: int = 1) -> Convolved:
        """Return the convolution of videos of `num_frames` frames."""
        # W_0 x, W_1 x and W_2 x in one convolution, then shifted along time and summed
        kernels = torch.cat([self.weight, self.temporal_weight])
        taps = F.conv2d(x, kernels, None, self.stride, self.padding)
        assert self.bias is not None
        return _sum_taps(taps, num_frames, self.shifts) + self.bias[:, None, None]


class Conv2Plus1d(nn.Conv2d):
    """A factorized (2+1)D convolution: 3x3 in space, then over three frames.

    Source: Tran et al., "A Closer Look at Spatiotemporal Convolutions for
    Action Recognition" (1711.11248). The temporal kernel starts as the identity.

    Its arguments are those of `InflatedConv3d`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, causal: bool) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)
        self.shifts = _shifts(causal=causal)
        # identity for the current frame and zero for its neighbours: starts as a 2D convolution
        current = torch.eye(out_channels)
        neighbours = torch.zeros(len(self.shifts) * out_channels, out_channels)
        self.temporal_weight = nn.Parameter(torch.cat([current, neighbours]))
        self.temporal_bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: FoldedFrames, num_frames: int = 1) -> Convolved:
        """Return the convolution of videos of `num_frames` frames."""
        # the temporal kernel covers one pixel: a linear layer over channels, faster on a CPU
        rows = rearrange(super().forward(x), "n c h w -> n h w c")
        # taps of the current and the two other frames, shifted along time and summed
        taps = rearrange(F.linear(rows, self.temporal_weight), "n h w c -> n c h w")
        return _sum_taps(taps, num_frames, self.shifts) + self.temporal_bias[:, None, None]


def build_conv(
    kind: ConvType, in_channels: int, out_channels: int, *, stride: int = 1, causal: bool
) -> FrameConv2d | InflatedConv3d | Conv2Plus1d:
    """Return a 3x3 convolution whose forward pass takes folded frames and `num_frames`."""
    if kind == "3d":
        return InflatedConv3d(in_channels, out_channels, stride, causal=causal)
    if kind == "2+1d":
        return Conv2Plus1d(in_channels, out_channels, stride, causal=causal)
    return FrameConv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def _shifts(*, causal: bool) -> tuple[int, int]:
    """Return the frame offsets of the two other taps of a temporal kernel."""
    return (1, 2) if causal else (1, -1)


def _sum_taps(taps: Convolved, num_frames: int, shifts: tuple[int, int]) -> Convolved:
    """Return y_i = a_i + sum over s of b_s(i - s), where the channels of `taps` are [a, b_s, ...].

    One convolution with stacked kernels, followed by shifts, reads the input once; three
    convolutions would read it three times.
    """
    # channels last, so that slices along frames are contiguous
    rows = rearrange(taps, "(b f) c h w -> b f h w c", f=num_frames)
    total, *others = rows.chunk(1 + len(shifts), dim=-1)
    for other, shift in zip(others, shifts, strict=True):
        total = total + _shift_frames(other, shift)
    return rearrange(total, "b f h w c -> (b f) c h w")


def _shift_frames(x: Float[Tensor, "b f h w c"], shift: int) -> Float[Tensor, "b f h w c"]:
    """Shift frames later by `shift` (earlier if negative) and pad with zeros."""
    far = min(abs(shift), x.shape[1])
    if shift > 0:
        return F.pad(x[:, : x.shape[1] - far], (0, 0, 0, 0, 0, 0, far, 0))
    return F.pad(x[:, far:], (0, 0, 0, 0, 0, 0, 0, far))


TimeEmbedding = Float[Tensor, "_ e"]
Resized = Float[Tensor, "n _ _ _"]  # folded frames with other channels or another side


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Configuration shared by all blocks of one network; see `VideoUNet` for the arguments."""

    time_embed_dim: int
    cross_attention_dim: int
    num_groups: int
    linear_projection: bool
    num_frames: int
    temporal_attention: TemporalMode
    frame_adaptor: bool
    spatial_attention: bool = True
    convolutions: ConvType = "2d"

    def build_conv(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
        """Return a 3x3 convolution, causal in time if temporal attention is `directed`."""
        causal = self.temporal_attention == "directed"
        return build_conv(
            self.convolutions, in_channels, out_channels, stride=stride, causal=causal
        )


@dataclass(frozen=True)
class FrameCache:
    """Keys and values of given first frames, to compute only the later frames.

    With directed attention this is exact, because the first frames never depend on later ones.

    Attributes:
        num_frames: Number of cached frames per video.
        layers: The cache of each temporal attention layer.
    """

    num_frames: int
    layers: dict[nn.Module, KVCache] = field(default_factory=dict)

    def select_videos(self, chosen: slice, num_videos: int) -> "FrameCache":
        """Return the cache of some of `num_videos` videos."""
        picked = {}
        for layer, (keys, values) in self.layers.items():
            k, v = (
                rearrange(
                    rearrange(t, "(b p) m f d -> b p m f d", b=num_videos)[chosen],
                    "b p m f d -> (b p) m f d",
                )
                for t in (keys, values)
            )
            picked[layer] = KVCache(k, v)
        return FrameCache(self.num_frames, picked)


@dataclass(frozen=True)
class BlockContext:
    """Inputs of every block in one forward pass.

    Attributes:
        time: Embedding of timestep, frame rate and motion, after SiLU: `b e`, or `(b f) e` if every
            frame has its own timestep.
        tokens: Text or image tokens, `b l d`.
        num_frames: Computed frames of each video: the batch axis is `(b f)`.
        past: Cache of the frames before them.
        record: Cache to fill with the keys and values of these frames.
    """

    time: TimeEmbedding
    tokens: Tokens
    num_frames: int
    past: "FrameCache | None" = None
    record: "FrameCache | None" = None

    @property
    def first_frame(self) -> int:
        """Index in the video of the first computed frame."""
        return 0 if self.past is None else self.past.num_frames


class ResnetBlock(nn.Module):
    """Residual block: norm, SiLU, convolution and adaptor, twice; time is added after the first."""

    def __init__(self, in_channels: int, out_channels: int, config: BlockConfig) -> None:
        super().__init__()
        frames, enabled = config.num_frames, config.frame_adaptor
        self.norm1 = nn.GroupNorm(config.num_groups, in_channels, eps=1e-5)
        self.conv1 = config.build_conv(in_channels, out_channels)
        self.adaptor1 = build_adaptor(frames, out_channels, enabled=enabled)
        self.time_emb_proj = nn.Linear(config.time_embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(config.num_groups, out_channels, eps=1e-5)
        self.conv2 = config.build_conv(out_channels, out_channels)
        self.adaptor2 = build_adaptor(frames, out_channels, enabled=enabled)
        # 1x1 convolution where the number of channels changes, as in Stable Diffusion
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: FoldedFrames, context: BlockContext) -> Resized:
        """Return the block's output."""
        # z = S * Conv2d(SiLU(GN(x))) + B + Linear(time): the adaptor adds the time embedding
        h = self.conv1(F.silu(self.norm1(x)), context.num_frames)
        h = self.adaptor1(
            h, context.num_frames, self.time_emb_proj(context.time), context.first_frame
        )
        h = self.conv2(F.silu(self.norm2(h)), context.num_frames)
        h = self.adaptor2(h, context.num_frames, first_frame=context.first_frame)
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return residual + h


class SpatioTemporalTransformer(SpatialTransformer):
    """Spatial transformer and directed temporal attention in parallel (Figure 3b).

    y = Adaptor(x + S-Attn(x)) + T-Attn(x). Both branches use the same input; the residual
    connection belongs to the spatial branch, as in Stable Diffusion.
    """

    def __init__(self, channels: int, num_heads: int, config: BlockConfig) -> None:
        super().__init__(
            channels,
            num_heads,
            config.cross_attention_dim,
            num_groups=config.num_groups,
            linear_projection=config.linear_projection,
            self_attention=config.spatial_attention,
        )
        self.adaptor = build_adaptor(config.num_frames, channels, enabled=config.frame_adaptor)
        self.temporal = (
            DirectedTemporalAttention(channels, num_heads, config.temporal_attention)
            if config.temporal_attention != "none"
            else None
        )

    def forward(  # type: ignore[override]
        self, x: FoldedFrames, context: BlockContext
    ) -> FoldedFrames:
        """Return the sum of both branches."""
        frames = context.num_frames
        spatial = super().forward(x, context.tokens, frames)
        # Figure 3b: y = Adaptor(x + S-Attn(x)) + T-Attn(x)
        spatial = self.adaptor(spatial, frames, first_frame=context.first_frame)
        if self.temporal is None:
            return spatial
        # T-Attn reads x, not the output of S-Attn: the two branches of Figure 3b are parallel
        past = None if context.past is None else context.past.layers[self.temporal]
        update, kept = self.temporal.forward_chunk(x, frames, past)
        if context.record is not None:
            context.record.layers[self.temporal] = kept
        return spatial + update


class Resample(nn.Module):
    """A 3x3 convolution with its adaptor, for downsampling (stride 2) or after upsampling."""

    def __init__(self, channels: int, config: BlockConfig, *, stride: int) -> None:
        super().__init__()
        self.conv = config.build_conv(channels, channels, stride)
        self.adaptor = build_adaptor(config.num_frames, channels, enabled=config.frame_adaptor)

    def forward(self, x: FoldedFrames, context: BlockContext) -> Resized:
        """Return the convolution after its adaptor."""
        x = self.conv(x, context.num_frames)
        return self.adaptor(x, context.num_frames, first_frame=context.first_frame)


class ResAttnBlock(nn.Module):
    """The layers of one resolution: residual blocks, each optionally followed by attention.

    diffusers' `enable_gradient_checkpointing` sets `gradient_checkpointing`. Then only the inputs
    of each layer are saved, and the backward pass recomputes its activations.
    """

    resnets: nn.ModuleList
    attentions: nn.ModuleList | None

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def _layer(self, i: int, x: FoldedFrames, context: BlockContext) -> Resized:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._compute, i, x, context, use_reentrant=False)
        return self._compute(i, x, context)

    def _compute(self, i: int, x: FoldedFrames, context: BlockContext) -> Resized:
        x = self.resnets[i](x, context)
        if self.attentions is None or i >= len(self.attentions):
            return x
        return self.attentions[i](x, context)


class DownBlock(ResAttnBlock):
    """One resolution of the encoder; each layer's output is a skip connection."""

    def __init__(
        self,
        channels: tuple[int, int],
        num_layers: int,
        num_heads: int | None,
        config: BlockConfig,
        *,
        is_last: bool,
    ) -> None:
        super().__init__()
        before, after = channels
        self.resnets = nn.ModuleList(
            ResnetBlock(before if i == 0 else after, after, config) for i in range(num_layers)
        )
        self.attentions = _attentions(after, num_layers, num_heads, config)
        self.downsamplers = None if is_last else nn.ModuleList([Resample(after, config, stride=2)])

    def forward(self, x: FoldedFrames, context: BlockContext) -> list[Resized]:
        """Return the output of every layer; the last is the input of the next block."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self._layer(i, x, context)
            outputs.append(x)
        if self.downsamplers is not None:
            outputs.append(self.downsamplers[0](x, context))
        return outputs


class MidBlock(ResAttnBlock):
    """The lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int, num_heads: int, config: BlockConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, config) for _ in range(2))
        self.attentions = nn.ModuleList([SpatioTemporalTransformer(channels, num_heads, config)])

    def forward(self, x: FoldedFrames, context: BlockContext) -> FoldedFrames:
        """Return the block's output."""
        x = self._layer(0, x, context)
        return self._layer(1, x, context)


class UpBlock(ResAttnBlock):
    """One resolution of the decoder; each layer concatenates one skip connection."""

    def __init__(
        self,
        channels: int,
        incoming: tuple[int, ...],
        skips: tuple[int, ...],
        num_heads: int | None,
        config: BlockConfig,
        *,
        is_last: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(before + skip, channels, config)
            for before, skip in zip(incoming, skips, strict=True)
        )
        self.attentions = _attentions(channels, len(skips), num_heads, config)
        self.upsamplers = None if is_last else nn.ModuleList([Resample(channels, config, stride=1)])

    def forward(
        self, x: FoldedFrames, skips: list[Resized], context: BlockContext, side: torch.Size
    ) -> Resized:
        """Return the block's output.

        Args:
            x: Output of the block below.
            skips: Outputs of the encoder at this resolution; the last one is used first.
            context: Inputs of every block.
            side: Height and width after upsampling.
        """
        # last in, first out: the deepest skip connection is consumed first
        for i, skip in enumerate(reversed(skips)):
            x = self._layer(i, torch.cat([x, skip], dim=1), context)
        if self.upsamplers is not None:
            x = F.interpolate(x, size=side, mode="nearest")
            x = self.upsamplers[0](x, context)
        return x


def _attentions(
    channels: int, num_layers: int, num_heads: int | None, config: BlockConfig
) -> nn.ModuleList | None:
    if num_heads is None:
        return None
    return nn.ModuleList(
        SpatioTemporalTransformer(channels, num_heads, config) for _ in range(num_layers)
    )

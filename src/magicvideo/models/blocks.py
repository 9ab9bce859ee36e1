"""The blocks of the video U-Net: shared 2D convolutions with adaptors, and the two attentions.

Names of shared parameters are those of diffusers' `UNet2DConditionModel`. What is new has `adaptor`
or `temporal` in its name.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from magicvideo.models.adaptor import build_adaptor
from magicvideo.models.attention import SpatialTransformer
from magicvideo.models.temporal_attention import DirectedTemporalAttention, TemporalMode
from magicvideo.models.temporal_conv import ConvType, apply_conv, build_conv
from magicvideo.shapes import FoldedFrames, Tokens

TimeEmbedding = Float[Tensor, "_ e"]
Resized = Float[Tensor, "n _ _ _"]  # folded frames with other channels or another side


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What all blocks of one network share."""

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
        """Return a 3x3 convolution, which sees no later frame where attention sees none."""
        causal = self.temporal_attention == "directed"
        return build_conv(
            self.convolutions, in_channels, out_channels, stride=stride, causal=causal
        )


@dataclass(frozen=True)
class BlockContext:
    """What conditions one forward pass.

    Attributes:
        time: Embedding of diffusion step, frame rate and motion, activated: `b e`, or `(b f) e`
            where frames have diffusion steps of their own.
        tokens: Text or image tokens, `b l d`.
        num_frames: Frames of a video, by which the batch axis unfolds.
    """

    time: TimeEmbedding
    tokens: Tokens
    num_frames: int


class ResnetBlock(nn.Module):
    """Two adapted convolutions with the time embedding between them, and a residual."""

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
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: FoldedFrames, context: BlockContext) -> Resized:
        """Return the block's output."""
        h = apply_conv(self.conv1, F.silu(self.norm1(x)), context.num_frames)
        h = self.adaptor1(h, context.num_frames, self.time_emb_proj(context.time))
        h = apply_conv(self.conv2, F.silu(self.norm2(h)), context.num_frames)
        h = self.adaptor2(h, context.num_frames)
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return residual + h


class SpatioTemporalTransformer(SpatialTransformer):
    """Figure 3b: spatial and directed temporal attention read the same features and are summed.

    The spatial branch keeps Stable Diffusion's residual connection and gets an adaptor of its own.
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

    def forward(self, x: FoldedFrames, condition: Tokens, num_frames: int) -> FoldedFrames:
        """Return the sum of both branches."""
        spatial = self.adaptor(super().forward(x, condition, num_frames), num_frames)
        return spatial if self.temporal is None else spatial + self.temporal(x, num_frames)


class Resample(nn.Module):
    """A 3x3 convolution with its adaptor, by which a level halves or doubles its side."""

    def __init__(self, channels: int, config: BlockConfig, *, stride: int) -> None:
        super().__init__()
        self.conv = config.build_conv(channels, channels, stride)
        self.adaptor = build_adaptor(config.num_frames, channels, enabled=config.frame_adaptor)

    def forward(self, x: FoldedFrames, num_frames: int) -> Resized:
        """Return the adapted convolution of x."""
        return self.adaptor(apply_conv(self.conv, x, num_frames), num_frames)


class ResAttnBlock(nn.Module):
    """Layers of a residual block and, where there is one, the attention that follows it.

    `gradient_checkpointing` is the switch that diffusers' `enable_gradient_checkpointing` looks
    for: of a layer its inputs alone are kept, and the backward pass computes the rest again.
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
        return self.attentions[i](x, context.tokens, context.num_frames)


class DownBlock(ResAttnBlock):
    """One level of the encoder half; every output is kept for the decoder half."""

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
        """Return the output of every layer; the last is the input of the next level."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self._layer(i, x, context)
            outputs.append(x)
        if self.downsamplers is not None:
            outputs.append(self.downsamplers[0](x, context.num_frames))
        return outputs


class MidBlock(ResAttnBlock):
    """The deepest level: residual block, attention, residual block."""

    def __init__(self, channels: int, num_heads: int, config: BlockConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, config) for _ in range(2))
        self.attentions = nn.ModuleList([SpatioTemporalTransformer(channels, num_heads, config)])

    def forward(self, x: FoldedFrames, context: BlockContext) -> FoldedFrames:
        """Return the level's output."""
        x = self._layer(0, x, context)
        return self._layer(1, x, context)


class UpBlock(ResAttnBlock):
    """One level of the decoder half; each layer takes one output of the encoder half."""

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
        """Return the level's output; the last of `skips` goes first, `side` is the next level's."""
        for i, skip in enumerate(reversed(skips)):
            x = self._layer(i, torch.cat([x, skip], dim=1), context)
        if self.upsamplers is not None:
            x = F.interpolate(x, size=side, mode="nearest")
            x = self.upsamplers[0](x, context.num_frames)
        return x


def _attentions(
    channels: int, num_layers: int, num_heads: int | None, config: BlockConfig
) -> nn.ModuleList | None:
    if num_heads is None:
        return None
    return nn.ModuleList(
        SpatioTemporalTransformer(channels, num_heads, config) for _ in range(num_layers)
    )

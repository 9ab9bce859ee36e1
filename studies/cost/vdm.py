"""The network of Video Diffusion Models (Ho et al., 2204.03458), only for counting.

No code was published. The network follows the description in the paper's appendix in everything
that affects the FLOPs; it was never trained. The number of residual blocks per decoder level is not
stated, so it is an argument.
"""

from dataclasses import dataclass

import torch
from diffusers.models.embeddings import Timesteps
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

_EMBED_DIM, _MLP_LAYERS, _GROUPS = 1024, 4, 32
Videos = Float[Tensor, "b _ f h w"]
Resized = Float[Tensor, "b _ f _ _"]


@dataclass(frozen=True)
class VdmSettings:
    """One published configuration, or a variation of one.

    Attributes:
        channels: Base channels.
        multipliers: Channels of each level, as multiples of the base, outermost first.
        frames: Frames per video.
        side: Side of the video in pixels.
        attention_sides: Sides of the feature maps with attention.
        head_width: Channels of an attention head.
        down_blocks: Residual blocks per level of the encoder half.
        up_blocks: Residual blocks per level of the decoder half, 2 or 3.
    """

    channels: int
    multipliers: tuple[int, ...]
    frames: int
    side: int
    attention_sides: frozenset[int]
    head_width: int
    down_blocks: int = 2
    up_blocks: int = 2


_PUBLISHED_SIDES = frozenset({8, 16, 32})
SMALL = VdmSettings(128, (1, 2, 4, 8), 16, 64, _PUBLISHED_SIDES, 64)
LARGE = VdmSettings(256, (1, 2, 4, 8), 16, 64, _PUBLISHED_SIDES, 64)
LARGE_128 = VdmSettings(128, (1, 2, 4, 8, 16), 9, 128, _PUBLISHED_SIDES, 128)


class VdmUNet(nn.Module):
    """A U-Net on pixels: 1x3x3 convolutions; spatial, then temporal attention after each block.

    Args:
        settings: Its sizes.
    """

    def __init__(self, settings: VdmSettings) -> None:
        super().__init__()
        widths = [settings.channels * m for m in settings.multipliers]
        side, last = settings.side, len(widths) - 1
        self.settings = settings
        self.sinusoid = Timesteps(settings.channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.mlp = _mlp(settings.channels)
        self.conv_in = _convolution(3, widths[0])
        skips, before = [widths[0]], widths[0]
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            for _ in range(settings.down_blocks):
                self.down.append(_Layer(before, width, side, settings))
                skips.append(width)
                before = width
            if i < last:
                self.down.append(_Resample(width, 2))
                skips.append(width)
                side //= 2
        self.middle = nn.ModuleList(
            [_Layer(before, before, side, settings), _ResidualBlock(before, before)]
        )
        self.up, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            # with fewer blocks than skip connections, the one from the level above is omitted
            level = [skips.pop() for _ in range(settings.down_blocks + 1)][: settings.up_blocks]
            incoming = [before, *[width] * (settings.up_blocks - 1)]
            self.up.append(
                nn.ModuleList(
                    _Layer(wide + skip, width, side, settings)
                    for wide, skip in zip(incoming, level, strict=True)
                )
            )
            before = width
            if i > 0:
                self.upsamplers.append(_Resample(width, 1))
                side *= 2
        self.norm_out = nn.GroupNorm(_GROUPS, before)
        self.conv_out = _convolution(before, 3)

    def forward(
        self, noisy: Float[Tensor, "b 3 f h w"], log_snr: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b 3 f h w"]:
        """Return the predicted noise."""
        emb = self.mlp(self.sinusoid(log_snr).to(noisy.dtype))
        x = self.conv_in(noisy)
        skips = [x]
        for layer in self.down:
            x = layer(x, emb)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, emb)
        for i, level in enumerate(self.up):
            assert isinstance(level, nn.ModuleList)
            held = [skips.pop() for _ in range(self.settings.down_blocks + 1)]
            for layer, skip in zip(level, held, strict=False):
                x = layer(torch.cat([x, skip], dim=1), emb)
            if i < len(self.upsamplers):
                x = self.upsamplers[i](x, emb)
        return self.conv_out(F.silu(self.norm_out(x)))


class _ResidualBlock(nn.Module):
    """Two convolutions, the conditioning added between them, and a residual."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_GROUPS, before), _convolution(before, after)
        self.emb = nn.Linear(_EMBED_DIM, after)
        self.norm2, self.conv2 = nn.GroupNorm(_GROUPS, after), _convolution(after, after)
        self.shortcut = nn.Conv3d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Videos, emb: Float[Tensor, "b e"]) -> Videos:
        """Return the block's output."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.emb(F.silu(emb))[:, :, None, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class _Attention(nn.Module):
    """Self-attention along one kind of axis, with a residual."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = channels // head_width
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def attend(self, rows: Float[Tensor, "n l c"], bias: Tensor | None) -> Float[Tensor, "n l c"]:
        """Return the attention output for each position of its row."""
        q, k, v = rearrange(
            self.to_qkv(rows), "n l (three m d) -> three n m l d", three=3, m=self.heads
        ).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.to_out(rearrange(mixed, "n m l d -> n l (m d)"))


class _SpatialAttention(_Attention):
    """Each position attends to its frame."""

    def forward(self, x: Videos) -> Videos:
        """Return the block's output."""
        rows = self.attend(rearrange(self.norm(x), "b c f h w -> (b f) (h w) c"), None)
        return x + rearrange(rows, "(b f) (h w) c -> b c f h w", f=x.shape[2], h=x.shape[3])


class _TemporalAttention(_Attention):
    """Each position attends to itself in all frames, with a relative position embedding."""

    def __init__(self, channels: int, head_width: int, frames: int) -> None:
        super().__init__(channels, head_width)
        self.relative = nn.Embedding(2 * frames - 1, self.heads)

    def forward(self, x: Videos) -> Videos:
        """Return the block's output."""
        frame = torch.arange(x.shape[2], device=x.device)
        distance = frame[:, None] - frame + x.shape[2] - 1
        bias = rearrange(self.relative(distance), "q k m -> m q k")
        rows = self.attend(rearrange(self.norm(x), "b c f h w -> (b h w) f c"), bias)
        return x + rearrange(rows, "(b h w) f c -> b c f h w", h=x.shape[3], w=x.shape[4])


class _Layer(nn.Module):
    """A residual block, followed at some sides by both attention layers."""

    def __init__(self, before: int, after: int, side: int, settings: VdmSettings) -> None:
        super().__init__()
        self.residual = _ResidualBlock(before, after)
        self.attentions = nn.Sequential()
        if side in settings.attention_sides:
            self.attentions.append(_SpatialAttention(after, settings.head_width))
            self.attentions.append(_TemporalAttention(after, settings.head_width, settings.frames))

    def forward(self, x: Videos, emb: Float[Tensor, "b e"]) -> Videos:
        """Return the layer's output."""
        return self.attentions(self.residual(x, emb))


class _Resample(nn.Module):
    """Downsampling by a stride of 2, or nearest upsampling by 2 before the convolution."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (1, 3, 3), (1, stride, stride), (0, 1, 1))

    def forward(self, x: Videos, emb: Float[Tensor, "b e"]) -> Resized:  # noqa: ARG002 - as layers
        """Return the resized features."""
        if self.conv.stride[-1] == 1:
            x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
        return self.conv(x)


def _convolution(before: int, after: int) -> nn.Conv3d:
    return nn.Conv3d(before, after, (1, 3, 3), padding=(0, 1, 1))


def _mlp(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(channels, _EMBED_DIM)]
    for _ in range(_MLP_LAYERS - 1):
        layers += [nn.SiLU(), nn.Linear(_EMBED_DIM, _EMBED_DIM)]
    return nn.Sequential(*layers)

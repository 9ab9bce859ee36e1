"""Stable Diffusion's spatial transformer, applied to frames folded into the batch axis.

Parameter names and computation match diffusers' `Transformer2DModel` with `BasicTransformerBlock`,
so its weights load by name.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.shapes import FoldedFrames, Tokens


def scaled_dot_product_attention(
    q: Float[Tensor, "b m q d"],
    k: Float[Tensor, "b m k d"],
    v: Float[Tensor, "b m k d"],
    *,
    visible: Bool[Tensor, "q k"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "b m q d"]:
    """Compute softmax(q k^T / sqrt(d)) v for each head with torch's fused kernels.

    Args:
        q: Queries of every head.
        k: Keys.
        v: Values.
        visible: Which keys each query attends to; all if None.
        is_causal: Whether query i attends only to keys 0 to i.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # on CPUs the backward pass of torch's attention is six times slower in bfloat16
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=visible, is_causal=is_causal
            )
        return mixed.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=is_causal)


class Attention(nn.Module):
    """Multi-head attention; `context_dim` differs from `channels` in cross-attention."""

    def __init__(self, channels: int, num_heads: int, context_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Float[Tensor, "b q c"], keys: Tokens) -> Float[Tensor, "b q c"]:
        """Return the attention output for queries `x` over `keys`."""
        # split the channels into heads: c = m * d
        q, k, v = (
            rearrange(t, "b l (m d) -> b m l d", m=self.num_heads)
            for t in (self.to_q(x), self.to_k(keys), self.to_v(keys))
        )
        mixed = scaled_dot_product_attention(q, k, v)
        return self.to_out[0](rearrange(mixed, "b m l d -> b l (m d)"))


class GEGLU(nn.Module):
    """A linear layer whose second half gates the first through GELU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * width)

    def forward(self, x: Float[Tensor, "n p c"]) -> Float[Tensor, "n p width"]:
        """Return the gated half."""
        # GEGLU(x) = (x V) * GELU(x W) (Shazeer, 2002.05202), with V and W in one matrix
        value, gate = self.proj(x).chunk(2, dim=-1)
        # a strided view is much slower in GELU's erf on a CPU than contiguous memory
        return value * F.gelu(gate.contiguous())


class FeedForward(nn.Module):
    """GEGLU and a linear layer; `nn.Identity` has the place of diffusers' dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = 4 * channels
        self.net = nn.Sequential(GEGLU(channels, width), nn.Identity(), nn.Linear(width, channels))

    def forward(self, x: Float[Tensor, "n p c"]) -> Float[Tensor, "n p c"]:
        """Return the network's output, without the residual."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention in a frame, cross-attention to the condition, feed-forward.

    Without `self_attention`, positions of a frame do not attend to each other (an ablation).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        cross_attention_dim: int,
        *,
        self_attention: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels) if self_attention else None
        self.attn1 = Attention(channels, num_heads, channels) if self_attention else None
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, num_heads, cross_attention_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(
        self, x: Float[Tensor, "n p c"], condition: Tokens, num_frames: int
    ) -> Float[Tensor, "n p c"]:
        """Return the block's output for the positions `p` of folded frames.

        All frames of a video share one condition. Their queries are concatenated, so keys and
        values are computed once per video and not repeated in memory.
        """
        if self.norm1 is not None and self.attn1 is not None:
            # S-Attn of Figure 3b: pre-norm attention within each frame, x + Attn(LN(x))
            normed = self.norm1(x)
            x = x + self.attn1(normed, normed)
        queries = rearrange(self.norm2(x), "(b f) p c -> b (f p) c", f=num_frames)
        # no mask needed: queries attend only to the condition's tokens, never to other frames
        gathered = self.attn2(queries, condition)
        x = x + rearrange(gathered, "b (f p) c -> (b f) p c", f=num_frames)
        # pre-norm feed-forward: x + FF(LN(x))
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Group norm, projection in, one transformer block, projection out, residual.

    Stable Diffusion 1.x projects with 1x1 convolutions and 2.x with linear layers. Both are the
    same matrix product and differ only in the shape of the stored weights.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        cross_attention_dim: int,
        *,
        num_groups: int,
        linear_projection: bool,
        self_attention: bool = True,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(num_groups, channels, eps=1e-6)
        self.proj_in = _projection(channels, linear=linear_projection)
        self.transformer_blocks = nn.ModuleList(
            [
                TransformerBlock(
                    channels, num_heads, cross_attention_dim, self_attention=self_attention
                )
            ]
        )
        self.proj_out = _projection(channels, linear=linear_projection)

    def forward(self, x: FoldedFrames, condition: Tokens, num_frames: int) -> FoldedFrames:
        """Return the spatial branch, residual included."""
        # every position of a frame becomes one token
        tokens = rearrange(self.norm(x), "n c h w -> n (h w) c")
        tokens = _project(self.proj_in, tokens, x.shape[2], linear=self.linear_projection)
        for block in self.transformer_blocks:
            tokens = block(tokens, condition, num_frames)
        tokens = _project(self.proj_out, tokens, x.shape[2], linear=self.linear_projection)
        return x + rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[2])


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution computed as a matrix product, whose backward pass is faster on a CPU.

    Its arguments are those of `nn.Conv2d`, which peft uses to create adapter layers.
    """

    def forward(self, x: FoldedFrames) -> Float[Tensor, "n out h w"]:
        """Return the convolution of x, in channels_last order."""
        rows = rearrange(x, "n c h w -> n h w c")
        return rearrange(F.linear(rows, self.weight.flatten(1), self.bias), "n h w c -> n c h w")


def _projection(channels: int, *, linear: bool) -> nn.Linear | PointwiseConv2d:
    if linear:
        return nn.Linear(channels, channels)
    return PointwiseConv2d(channels, channels, kernel_size=1)


def _project(layer: nn.Module, tokens: Tokens, height: int, *, linear: bool) -> Tokens:
    if linear:
        return layer(tokens)
    projected = layer(rearrange(tokens, "n (h w) c -> n c h w", h=height))
    return rearrange(projected, "n c h w -> n (h w) c")

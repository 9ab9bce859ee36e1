"""Directed temporal attention: each frame attends to itself and to the frames before it."""

from typing import Literal, TypeAlias, get_args

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.shapes import FoldedFrames

TemporalMode: TypeAlias = Literal["directed", "printed", "bidirectional", "none"]


class DirectedTemporalAttention(nn.Module):
    """Self-attention along time, at every spatial position.

    Source: MagicVideo, "Spatial and directed temporal attention" (T-Attn, Figure 3c).

    Args:
        channels: Channels of the feature map.
        num_heads: Attention heads; divides `channels`.
        mode: `directed` masks later frames before the softmax, so that a frame never reads one.
            `printed` multiplies the triangular mask after the softmax, as the paper's formula
            does, which leaves later frames in the normaliser (departure D3 in docs/paper_map.md).
            `bidirectional` has no mask.

    Raises:
        ValueError: If `num_heads` does not divide `channels`, or the mode is not one of these.
    """

    def __init__(self, channels: int, num_heads: int, mode: TemporalMode = "directed") -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels={channels} is not a multiple of num_heads={num_heads}")
        if mode not in get_args(TemporalMode)[:3]:
            raise ValueError(f"mode={mode!r} is not one of {get_args(TemporalMode)[:3]}")
        self.num_heads, self.mode = num_heads, mode
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)  # at the start the video network is the image network
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: FoldedFrames, num_frames: int) -> FoldedFrames:
        """Return the temporal branch of the block, which the caller adds to the spatial branch."""
        # one copy, here: with time beside the channels all that follows are views
        tracks = rearrange(x, "(b f) c h w -> (b h w) f c", f=num_frames)
        q, k, v = rearrange(
            self.to_qkv(self.norm(tracks)),
            "t f (three m d) -> three t m f d",
            three=3,
            m=self.num_heads,
        ).unbind()
        mixed = rearrange(self._attend(q, k, v), "t m f d -> t f (m d)")
        return rearrange(
            self.to_out(mixed), "(b h w) f c -> (b f) c h w", h=x.shape[2], w=x.shape[3]
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.mode == "printed":
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).tril()
            return weights @ v
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.mode == "directed")

"""Directed temporal attention: each frame attends to itself and to the frames before it."""

from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from magicvideo.models.attention import scaled_dot_product_attention
from magicvideo.shapes import FoldedFrames

TemporalMode: TypeAlias = Literal["directed", "post_softmax_mask", "bidirectional", "none"]


class KVCache(NamedTuple):
    """Keys and values of the frames that precede a chunk.

    A track is one spatial position of one video over time: the axis "(b h w)".
    """

    keys: Float[Tensor, "tracks heads f width"]
    values: Float[Tensor, "tracks heads f width"]


class DirectedTemporalAttention(nn.Module):
    """Self-attention along time, at every spatial position.

    Source: MagicVideo, "Spatial and directed temporal attention" (T-Attn, Figure 3c):
    A = softmax(Q K^T / sqrt(d) + M) V, with M_ij = 0 for j <= i and -inf for later frames j > i.

    Args:
        channels: Channels of the feature map.
        num_heads: Attention heads; divides `channels`.
        mode: `directed` masks later frames before the softmax, so a frame never attends to them.
            `post_softmax_mask` multiplies the triangular mask after the softmax, as in the paper's
            formula, which keeps later frames in the normalization (departure D3 in
            docs/paper_map.md). `bidirectional` has no mask.
        window_size: Number of frames each frame attends to, including itself; None for all earlier
            frames. Only for mode `directed`.

    Raises:
        ValueError: If `num_heads` does not divide `channels`, the mode is unknown, or the window
            size is below one or not supported by the mode.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mode: TemporalMode = "directed",
        window_size: int | None = None,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels={channels} is not a multiple of num_heads={num_heads}")
        if mode not in get_args(TemporalMode)[:3]:
            raise ValueError(f"mode={mode!r} is not one of {get_args(TemporalMode)[:3]}")
        if window_size is not None and (window_size < 1 or mode != "directed"):
            raise ValueError(
                f"window_size={window_size} with mode={mode!r}: 1 or more, with `directed`"
            )
        self.num_heads, self.mode, self.window_size = num_heads, mode, window_size
        self.norm = nn.LayerNorm(channels)
        # one matrix for queries, keys and values, so the features are read from memory once
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)  # the video network starts as the image network
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: FoldedFrames, num_frames: int) -> FoldedFrames:
        """Return the temporal branch, which the caller adds to the spatial branch."""
        return self.forward_chunk(x, num_frames, None)[0]

    def forward_chunk(
        self, x: FoldedFrames, num_frames: int, past: KVCache | None
    ) -> tuple[FoldedFrames, KVCache]:
        """Return the temporal branch for a chunk of frames, and the cache for the next chunk.

        Processing chunk by chunk gives the same result as the whole video, because no frame attends
        to later ones.

        Args:
            x: Features of the chunk.
            num_frames: Frames of the chunk.
            past: Cache returned for the previous chunk; None at the start of the video.

        Raises:
            ValueError: If a cache is given and the mode is not `directed`.
        """
        if past is not None and self.mode != "directed":
            raise ValueError(
                f"mode={self.mode!r} cannot continue earlier frames; only 'directed' can"
            )
        # the only copy; with time next to the channels, all following rearrangements are views
        tracks = rearrange(x, "(b f) c h w -> (b h w) f c", f=num_frames)
        q, k, v = rearrange(
            self.to_qkv(self.norm(tracks)),
            "t f (three m d) -> three t m f d",
            three=3,
            m=self.num_heads,
        ).unbind()
        if past is not None:
            # earlier frames come first: row i of the mask then ends at column (number of keys) -
            # (number of queries) + i
            k, v = torch.cat([past.keys, k], dim=2), torch.cat([past.values, v], dim=2)
        mixed = rearrange(self._attend(q, k, v), "t m f d -> t f (m d)")
        update = rearrange(
            self.to_out(mixed), "(b h w) f c -> (b f) c h w", h=x.shape[2], w=x.shape[3]
        )
        # the next frame attends to `window_size` frames including itself: keep window_size - 1
        forgotten = 0 if self.window_size is None else max(0, k.shape[2] + 1 - self.window_size)
        return update, KVCache(k[:, :, forgotten:], v[:, :, forgotten:])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.mode == "post_softmax_mask":
            # the paper's formula, tril(softmax(q k^T / sqrt(d))) v: rows sum to less than 1,
            # because the softmax also normalizes over later frames
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).tril()
            return weights @ v
        # M_ij = 0 for visible keys, -inf for the others; torch adds it to q k^T / sqrt(d)
        visible = self._visible(q.shape[2], k.shape[2], q.device)
        is_causal = self.mode == "directed" and visible is None
        return scaled_dot_product_attention(q, k, v, visible=visible, is_causal=is_causal)

    def _visible(self, queries: int, keys: int, device: torch.device) -> Bool[Tensor, "q k"] | None:
        """Return which keys each query attends to; None if torch's causal mask is equal."""
        window_size = keys if self.window_size is None else self.window_size
        if queries == keys <= window_size or self.mode != "directed":
            return None
        frame = torch.arange(keys, device=device)
        # query i of the chunk is frame keys - queries + i; a negative age means a later frame
        age = frame[keys - queries :, None] - frame
        return (age >= 0) & (age < window_size)

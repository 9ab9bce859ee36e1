"""The frame-wise adaptor, which lets all frames of a video share one 2D convolution."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magicvideo.shapes import FoldedFrames


class FrameAdaptor(nn.Module):
    """Per-frame, per-channel scale and shift after a convolution shared by all frames.

    Source: MagicVideo, frame-wise lightweight adaptor: z^i = S^i * Conv2d(z^i) + B^i. With the
    initial values S = 1 and B = 0 the video network equals the image network. S and B differ by
    frame, so they also encode the position of a frame in the video.

    Args:
        num_frames: Maximal number of frames; a shorter video uses the first rows.
        channels: Channels of the convolution's output.
    """

    def __init__(self, num_frames: int, channels: int) -> None:
        super().__init__()
        # identity initialization: the video network starts as the image network
        self.scale = nn.Parameter(torch.ones(num_frames, channels))
        self.shift = nn.Parameter(torch.zeros(num_frames, channels))

    def forward(
        self,
        x: FoldedFrames,
        num_frames: int,
        offset: Float[Tensor, "_ c"] | None = None,
        first_frame: int = 0,
    ) -> FoldedFrames:
        """Return S * x + B, plus an optional `offset`, in one pass over memory.

        Args:
            x: Output of the convolution.
            num_frames: Frames of each video in `x`.
            offset: Additional shift, one row per video or one per frame.
            first_frame: Index in the video of the first frame in `x`.
        """
        # one row per folded frame, so the backward pass on a CPU sums over contiguous memory
        batch = x.shape[0] // num_frames
        rows = slice(first_frame, first_frame + num_frames)
        scale = self.scale[rows].repeat(batch, 1)
        shift = self.shift[rows].repeat(batch, 1)
        if offset is not None:
            # the ResNet block's time embedding: one fused addition instead of a second pass
            shift = shift + repeat_for_frames(offset, x.shape[0])
        # S * x + B in one pass over memory, forward and backward; S and B broadcast over h and w
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


class IdentityAdaptor(nn.Module):
    """Replaces the adaptor in the image network and in the ablation without adaptors."""

    def forward(
        self,
        x: FoldedFrames,
        num_frames: int,  # noqa: ARG002 - the signature of `FrameAdaptor`
        offset: Float[Tensor, "_ c"] | None = None,
        first_frame: int = 0,  # noqa: ARG002 - likewise
    ) -> FoldedFrames:
        """Return x, plus an `offset` per video or frame."""
        if offset is None:
            return x
        return x + repeat_for_frames(offset, x.shape[0])[:, :, None, None]


def build_adaptor(
    num_frames: int, channels: int, *, enabled: bool
) -> FrameAdaptor | IdentityAdaptor:
    """Return a frame adaptor, or an `IdentityAdaptor` if disabled."""
    return FrameAdaptor(num_frames, channels) if enabled else IdentityAdaptor()


def repeat_for_frames(rows: Float[Tensor, "n c"], num_folded: int) -> Float[Tensor, "bf c"]:
    """Return one row per folded frame, given one row per video or one per frame."""
    return rows.repeat_interleave(num_folded // rows.shape[0], dim=0)

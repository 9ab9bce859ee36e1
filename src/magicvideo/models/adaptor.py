"""The frame-wise adaptor, by which all frames of a video share one 2D convolution."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magicvideo.shapes import FoldedFrames


class FrameAdaptor(nn.Module):
    """Scale and shift per frame and channel, after a convolution that all frames share.

    Source: MagicVideo, frame-wise lightweight adaptor: z^i = S^i * Conv2d(z^i) + B^i. It starts at
    S = 1 and B = 0, where the video network equals the image network. Because S and B differ by
    frame, they also encode the position of a frame in the video.

    Args:
        num_frames: The most frames of a video; a shorter video uses the first rows.
        channels: Channels of the convolution's output.
    """

    def __init__(self, num_frames: int, channels: int) -> None:
        super().__init__()
        # the identity: the video network starts as the image network
        self.scale = nn.Parameter(torch.ones(num_frames, channels))
        self.shift = nn.Parameter(torch.zeros(num_frames, channels))

    def forward(
        self,
        x: FoldedFrames,
        num_frames: int,
        offset: Float[Tensor, "_ c"] | None = None,
        first_frame: int = 0,
    ) -> FoldedFrames:
        """Return S * x + B, plus an `offset` per video or frame in the same pass over memory.

        Args:
            x: Output of the convolution.
            num_frames: Frames of each video in `x`.
            offset: What to add, one row per video or one per frame.
            first_frame: Where in the video the first of these frames stands.
        """
        # one row per folded frame: the backward pass on a CPU then sums over contiguous memory
        batch = x.shape[0] // num_frames
        rows = slice(first_frame, first_frame + num_frames)
        scale = self.scale[rows].repeat(batch, 1)
        shift = self.shift[rows].repeat(batch, 1)
        if offset is not None:
            shift = shift + repeat_for_frames(offset, x.shape[0])
        # S * x + B in one pass over memory, forward and backward
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

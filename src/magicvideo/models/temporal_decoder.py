"""What decoders of videos share: two directed temporal attentions, and windows of frames in a row.

The layers sit in the decoder's coarse half. Source: MagicVideo, VideoVAE: the decoder gets two
temporal directed attention layers (reported by others), against flicker. Where they sit is our
choice: after the middle block, at the code's resolution, and after the first up block, at twice
that.
"""

from abc import ABC, abstractmethod
from typing import TypeAlias

from diffusers.models.autoencoders.vae import DecoderOutput
from jaxtyping import Float
from torch import Tensor

from magicvideo.models.temporal_attention import DirectedTemporalAttention, KVCache
from magicvideo.shapes import FoldedFrames

Features: TypeAlias = Float[Tensor, "n _ _ _"]
"""Of any layer: neighbours differ in all but the number of frames."""
DecoderCache: TypeAlias = tuple[KVCache, KVCache]
"""What the two layers keep of the frames before a window: never more than their reach."""


class TemporalDecoderMixin(ABC):
    """The video form of an autoencoder's decoder, which begins as the image decoder.

    It goes before the image class among a class's bases.
    """

    temporal_mid: DirectedTemporalAttention
    temporal_up: DirectedTemporalAttention

    def decode(self, z: FoldedFrames, num_frames: int = 1) -> DecoderOutput:
        """Return pixels of the unscaled codes of videos, each `num_frames` long.

        By default every frame is a video of its own.
        """
        return DecoderOutput(sample=self.decode_chunk(z, num_frames, None)[0])

    def decode_chunk(
        self, z: FoldedFrames, num_frames: int, cache: DecoderCache | None
    ) -> tuple[Features, DecoderCache]:
        """Return pixels of a window of frames, and the memory for the window after it.

        Args:
            z: Unscaled code of the window, of one or several videos.
            num_frames: Frames of the window.
            cache: What the window before returned; None where the videos start.
        """
        before_mid, before_up = cache or (None, None)
        x = self._to_mid(z)
        update, after_mid = self.temporal_mid.forward_chunk(x, num_frames, before_mid)
        x = self._to_up(x + update)
        update, after_up = self.temporal_up.forward_chunk(x, num_frames, before_up)
        return self._to_pixels(x + update, z), (after_mid, after_up)

    @abstractmethod
    def _to_mid(self, z: FoldedFrames) -> Features:
        """Return the features after the middle block."""

    @abstractmethod
    def _to_up(self, x: Features) -> Features:
        """Return the features after the first up block, from those after the middle block."""

    @abstractmethod
    def _to_pixels(self, x: Features, z: FoldedFrames) -> Features:
        """Return pixels, from the features after the first up block and the code itself."""

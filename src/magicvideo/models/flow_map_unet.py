"""A distilled U-Net whose calls look like those of any other: the target is filled in."""

from collections.abc import Callable

from torch import Tensor

from magicvideo.models.blocks import FrameCache
from magicvideo.models.unet import VideoUNet, VideoUNetOutput
from magicvideo.shapes import Latents, Tokens


class FlowMapUNet:
    """A U-Net with `flow_map`, conditioned on the target of each step of a sampler.

    Args:
        unet: The network.
        target_of: Returns the target of a diffusion step: `FlowMapScheduler.target_of`.
    """

    def __init__(self, unet: VideoUNet, target_of: Callable[[Tensor], int]) -> None:
        self.unet, self.target_of = unet, target_of

    def __call__(
        self,
        sample: Latents,
        timestep: Tensor,
        encoder_hidden_states: Tokens,
        fps: Tensor | float,
        motion: Tensor | None = None,
        *,
        past: FrameCache | None = None,
    ) -> VideoUNetOutput:
        """Return the prediction over the interval of a step; the arguments are the U-Net's.

        Given frames have timestep 0, and all others have the same.
        """
        output: VideoUNetOutput = self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            fps,
            motion=motion,
            target_timestep=self.target_of(timestep.max()),
            past=past,
        )
        return output

    def cache_frames(
        self,
        latents: Latents,
        tokens: Tokens,
        fps: Tensor,
        motion: Tensor | None = None,
    ) -> FrameCache:
        """Return what later frames need of given ones: `VideoUNet.cache_frames`."""
        return self.unet.cache_frames(latents, tokens, fps, motion)

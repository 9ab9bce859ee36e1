"""Interpolation: new frames between two key frames, by diffusion of what blending gets wrong."""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import repeat
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from magicvideo.models.inflate import is_new
from magicvideo.models.unet import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES, VideoUNet
from magicvideo.shapes import Tokens


class Interpolator(ModelMixin, ConfigMixin):
    """Denoise the frames between two keys, over windows [key, new, ..., new, key].

    Source: MagicVideo interpolates by a network of its own, from the latents of two consecutive key
    frames and noise, three new frames a gap; the rest is our choice (departure D12 in
    docs/paper_map.md). It is a `VideoUNet` whose temporal attention has no mask, so that new frames
    see both keys. Every frame gets both keys as extra channels, and a mask that is 1 at the keys.

    What is diffused is not the new frame but its difference from the linear blend of the keys, in
    units of that difference's standard deviation. Where nothing moves the difference is zero, and
    zero is easy to learn: what stands still stays still.

    Args:
        latent_channels: Channels of the latents.
        num_inserted: New frames between two keys.
        residual_scale: Standard deviation of the difference from the blend.
        sample_size: Side of the latents that it was trained on.
        down_block_types: As for `VideoUNet`, and so are all that follow.
        up_block_types: Levels of the decoder half.
        block_out_channels: Channels of each level.
        layers_per_block: Residual blocks a level.
        cross_attention_dim: Width of the condition's tokens.
        attention_head_dim: Attention heads.
        norm_num_groups: Groups of every group norm.
        use_linear_projection: Linear layers around the transformers.
        frame_adaptor: Whether convolutions have frame-wise adaptors.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        num_inserted: int = 3,
        residual_scale: float = 1.0,  # noqa: ARG002 - registered
        sample_size: int = 32,
        down_block_types: Sequence[str] = DOWN_BLOCK_TYPES,
        up_block_types: Sequence[str] = UP_BLOCK_TYPES,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        cross_attention_dim: int = 768,
        attention_head_dim: int | Sequence[int] = 8,
        norm_num_groups: int = 32,
        use_linear_projection: bool = False,
        frame_adaptor: bool = True,
    ) -> None:
        super().__init__()
        self.unet = VideoUNet(
            sample_size=sample_size,
            in_channels=3 * latent_channels + 1,
            out_channels=latent_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            use_linear_projection=use_linear_projection,
            num_frames=num_inserted + 2,
            temporal_attention="bidirectional",
            frame_adaptor=frame_adaptor,
            noise_level=True,
        )

    def forward(
        self,
        residuals: Float[Tensor, "g k c h w"],
        timestep: Shaped[Tensor, "g"],
        keys: Float[Tensor, "g 2 c h w"],
        noise_level: Shaped[Tensor, "g"],
        tokens: Tokens,
        fps: Float[Tensor, "g"],
    ) -> Float[Tensor, "g k c h w"]:
        """Return the prediction for the noisy residuals of gaps `g` with `k` new frames each.

        Args:
            residuals: Noisy differences from the blend, in units of `residual_scale`.
            timestep: Diffusion step of each gap.
            keys: Latents at both ends of each gap, noised up to `noise_level`.
            noise_level: Diffusion step up to which the keys were noised.
            tokens: Condition of each gap.
            fps: Frames a second of the finished video.
        """
        num_frames = self.config.num_inserted + 2
        at_keys = torch.zeros_like(keys[:, :1])
        both = repeat(keys, "g two c h w -> g f (two c) h w", f=num_frames)
        mask = torch.zeros_like(both[:, :, :1])
        mask[:, 0] = mask[:, -1] = 1.0
        known = torch.cat([at_keys, residuals, at_keys], dim=1)
        prediction = self.unet(
            torch.cat([known, both, mask], dim=2), timestep, tokens, fps, noise_level
        )
        return prediction[:, 1:-1]

    @torch.no_grad()
    def start_from(self, keyframes: VideoUNet) -> None:
        """Take over the weights of the key-frame network.

        New input channels get weights of zero. A window may stand anywhere in the video, so its
        adaptors start from the mean over the key-frame network's frames; the embedding of the noise
        level stays zero.
        """
        theirs = keyframes.state_dict()
        for name, own in self.unet.state_dict().items():
            if name.startswith("level_embedding") or (is_new(name) and name not in theirs):
                continue
            if name == "conv_in.weight":
                own.zero_()
                own[:, : theirs[name].shape[1]] = theirs[name]
            elif "adaptor" in name:
                own.copy_(theirs[name].mean(dim=0).expand_as(own))
            else:
                own.copy_(theirs[name])
        nn.init.zeros_(self.unet.conv_out.weight)
        assert self.unet.conv_out.bias is not None
        nn.init.zeros_(self.unet.conv_out.bias)

"""Frame interpolation: regress the frames between two keys, then diffuse the residual."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange, repeat
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.unet import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES, VideoUNet
from magicvideo.shapes import Tokens

_LEAST_DIFFERENCE = 0.03  # in latents of unit variance; about the autoencoder's noise
_NUM_LEVELS = 1000  # diffusion steps; a noise level is one of them
_ESTIMATE_GROUPS = 8


def lerp_keyframes(
    keys: Float[Tensor, "g 2 c h w"], num_inserted: int
) -> Float[Tensor, "g k c h w"]:
    """Interpolate the latents of two keys linearly."""
    # frame i of k new ones lies i / (k + 1) of the way from the first key to the second
    weights = torch.arange(1, num_inserted + 1, device=keys.device) / (num_inserted + 1)
    first, second = keys[:, :1], keys[:, 1:]
    return torch.lerp(first, second, weights.to(keys.dtype)[:, None, None, None])


def keyframe_rms_distance(keys: Float[Tensor, "g 2 c h w"]) -> Float[Tensor, "g 1 1 1 1"]:
    """Return the root mean square difference of the two keys of each gap, plus a small constant.

    The error of linear interpolation is proportional to it. Residuals are normalized by it, so that
    gaps with little and with much motion have equal weight in the loss.
    """
    # in float32: squares of small differences underflow in half precision
    apart = (keys[:, 1] - keys[:, 0]).float().square().flatten(1).mean(dim=1).sqrt()
    # the constant keeps divisions finite where nothing moves
    return (apart + _LEAST_DIFFERENCE).to(keys.dtype)[:, None, None, None, None]


def every_nth(every: int) -> slice:
    """Return a slice of the last gap of each group of `every` gaps.

    The selection does not depend on the number of processes that share a batch.
    """
    return slice(every - 1, None, every)


class ResidualEstimator(nn.Module):
    """Regress the error of linear interpolation in one pass, by a few convolutions.

    Motion is local, so a small convolutional network suffices. It processes many gaps in the time
    the U-Net, dozens of times larger, needs for a few.

    Args:
        latent_channels: Channels of the latents.
        num_inserted: Number of new frames between two keys.
        channels: Width, a multiple of 8.
        num_blocks: Residual blocks.
    """

    def __init__(
        self, latent_channels: int, num_inserted: int, channels: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.num_inserted = num_inserted
        # both keys, their difference, and a plane with the noise level
        self.conv_in = nn.Conv2d(3 * latent_channels + 1, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResnetBlock2D(
                in_channels=channels,
                out_channels=channels,
                temb_channels=None,
                groups=_ESTIMATE_GROUPS,
            )
            for _ in range(num_blocks)
        )
        self.norm_out = nn.GroupNorm(_ESTIMATE_GROUPS, channels)
        self.conv_out = nn.Conv2d(channels, num_inserted * latent_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(
        self,
        keys: Float[Tensor, "g 2 c h w"],
        scale: Float[Tensor, "g 1 1 1 1"],
        noise_level: Shaped[Tensor, "g"],
    ) -> Float[Tensor, "g k c h w"]:
        """Return the difference from linear interpolation, divided by `scale`."""
        first, second = keys.unbind(dim=1)
        # the noise level as a fraction in [0, 1), constant over positions
        level = (noise_level.to(keys.dtype) / _NUM_LEVELS)[:, None, None, None]
        plane = level.expand(-1, 1, *keys.shape[-2:])
        # the scaled difference of the keys has about unit variance for slow and fast motion
        inputs = torch.cat([first, second, (second - first) / scale[:, 0], plane], dim=1)
        x = self.conv_in(inputs.to(self.conv_in.weight.dtype))
        for block in self.blocks:
            x = block(x, None)
        x = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return rearrange(x, "g (k c) h w -> g k c h w", k=self.num_inserted).to(keys.dtype)


class InterpolatorOutput(NamedTuple):
    """Targets and predictions of both networks, divided by the residual scale s."""

    residual_target: Float[Tensor, "g k c h w"]
    """(x - l) / s: the difference of the true frames from linear interpolation."""
    residual_estimate: Float[Tensor, "g k c h w"]
    """c: its regression."""
    diffusion_target: Float[Tensor, "n k c h w"]
    """r = (x - l) / s - c, for the gaps that the U-Net processes."""
    diffusion_prediction: Float[Tensor, "n k c h w"]
    """The U-Net's prediction from noisy r."""


class Interpolator(ModelMixin, ConfigMixin):
    """Denoise the frames between two keys, over windows [key, new, ..., new, key].

    Source: MagicVideo interpolates with a separate network, from noise and the latents of two
    consecutive key frames, three new frames per gap; the rest is our choice (departure D12 in
    docs/paper_map.md). The U-Net is a `VideoUNet` with bidirectional temporal attention, so that
    new frames attend to both keys. Every frame gets both keys as extra channels, and a mask that is
    1 at the keys.

    Not the new frame x is diffused but its normalized residual from a regression: regress the
    predictable part, diffuse the rest (Mardani et al., "Residual Corrective Diffusion Modeling",
    2309.15214). With l the linear interpolation of the keys and s = residual_scale * RMS distance
    of the keys, the regression c estimates (x - l) / s and the U-Net diffuses r = (x - l) / s - c,
    so that x = l + s (c + r). Initially c = 0. Without motion all terms are zero, so static regions
    stay static.

    Both networks get noisy keys, so that they learn to separate motion from errors of generated
    keys. The interpolation l uses the clean keys: keyframe errors are carried into the interpolated
    frames, because the video would flicker at the keys otherwise.

    Args:
        latent_channels: Channels of the latents.
        num_inserted: New frames between two keys.
        residual_scale: Standard deviation of x - l relative to the distance of the keys.
        estimate_channels: Width of the regression network.
        estimate_blocks: Residual blocks of the regression network.
        sample_size: Side of the training latents, or their height and width.
        down_block_types: As for `VideoUNet`, like all following arguments.
        up_block_types: Levels of the decoder half.
        block_out_channels: Channels of each level.
        layers_per_block: Residual blocks per level.
        cross_attention_dim: Width of the condition's tokens.
        attention_head_dim: Attention heads.
        norm_num_groups: Groups of every group norm.
        use_linear_projection: Linear layers around the transformers.
        frame_adaptor: Whether convolutions have frame-wise adaptors.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("ResidualEstimator",)  # FSDP and compile unit

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        num_inserted: int = 3,
        residual_scale: float = 1.0,  # noqa: ARG002 - registered
        estimate_channels: int = 96,
        estimate_blocks: int = 3,
        sample_size: int | Sequence[int] = 32,
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
        self.correction = ResidualEstimator(
            latent_channels, num_inserted, estimate_channels, estimate_blocks
        )
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
        middle: Float[Tensor, "g k c h w"],
        keys: Float[Tensor, "g 2 c h w"],
        noisy_keys: Float[Tensor, "g 2 c h w"],
        noise_level: Shaped[Tensor, "g"],
        add_noise: Callable[[Tensor], Tensor],
        timestep: Shaped[Tensor, "n"],
        tokens: Tokens,
        fps: Float[Tensor, "n"],
    ) -> InterpolatorOutput:
        """Return targets and predictions of both networks, for training.

        Args:
            middle: True latents of the frames between the keys.
            keys: Clean latents at both ends of each gap.
            noisy_keys: The keys noised up to `noise_level`, the networks' input.
            noise_level: Diffusion step up to which the keys were noised.
            add_noise: Adds noise to the residuals of the `n` gaps `every_nth(g / n)`, which the
                U-Net processes.
            timestep: Diffusion step of each of these gaps.
            tokens: Condition of each of these gaps.
            fps: Frames per second of the finished video, for each of these gaps.
        """
        # s uses the noisy keys, because sampling only has generated, inaccurate keys
        scale = self.residual_scale_for(noisy_keys)
        # (x - l) / s
        target = (middle - lerp_keyframes(keys, self.config.num_inserted)) / scale
        estimate = self.correction(noisy_keys, scale, noise_level)
        few = every_nth(len(keys) // len(timestep))
        # r = (x - l) / s - c. c is detached, because the diffusion loss would otherwise change its
        # own target
        residuals = (target - estimate.detach())[few]
        noisy = add_noise(residuals)
        prediction = self.denoise(noisy, timestep, noisy_keys[few], noise_level[few], tokens, fps)
        return InterpolatorOutput(target, estimate, residuals, prediction)

    def residual_scale_for(
        self, noisy_keys: Float[Tensor, "g 2 c h w"]
    ) -> Float[Tensor, "g 1 1 1 1"]:
        """Return the scale s of the residuals of each gap."""
        return self.config.residual_scale * keyframe_rms_distance(noisy_keys)

    def estimate(
        self,
        keys: Float[Tensor, "g 2 c h w"],
        noisy_keys: Float[Tensor, "g 2 c h w"],
        noise_level: Shaped[Tensor, "g"],
    ) -> tuple[Float[Tensor, "g k c h w"], Float[Tensor, "g 1 1 1 1"]]:
        """Return the regressed new frames l + s c, and the scale s of the residuals.

        Args:
            keys: Clean latents at both ends of each gap.
            noisy_keys: The keys noised up to `noise_level`, the networks' input.
            noise_level: Diffusion step up to which the keys were noised.
        """
        scale = self.residual_scale_for(noisy_keys)
        blended = lerp_keyframes(keys, self.config.num_inserted)
        return blended + scale * self.correction(noisy_keys, scale, noise_level), scale

    def denoise(
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
            residuals: Noisy residuals r.
            timestep: Diffusion step of each gap.
            keys: Latents at both ends of each gap, noised up to `noise_level`.
            noise_level: Diffusion step up to which the keys were noised.
            tokens: Condition of each gap.
            fps: Frames per second of the finished video.
        """
        num_frames = self.config.num_inserted + 2
        at_keys = torch.zeros_like(keys[:, :1])
        # input per frame: residual (c channels), first and second key (2 c), and the mask of known
        # frames (1)
        both = repeat(keys, "g two c h w -> g f (two c) h w", f=num_frames)
        mask = torch.zeros_like(both[:, :, :1])
        mask[:, 0] = mask[:, -1] = 1.0
        # known frames have no residual
        known = torch.cat([at_keys, residuals, at_keys], dim=1)
        prediction = self.unet(
            torch.cat([known, both, mask], dim=2), timestep, tokens, fps, noise_level
        )
        # outputs at the keys are unused
        return prediction.sample[:, 1:-1]

    @torch.no_grad()
    def init_from_keyframe_unet(self, keyframes: VideoUNet) -> None:
        """Initialise from the weights of the key-frame network.

        New input channels start as zero, and so does the last convolution, because its output is a
        residual here. A window may be anywhere in the video, so adaptors start as their mean over
        frames. The embedding of the noise level stays zero. Attention layers that the key-frame
        network lacks keep their random initialization.
        """
        theirs = keyframes.state_dict()
        for name, own in self.unet.state_dict().items():
            absent = name not in theirs and (is_temporal_key(name) or ".attentions." in name)
            if name.startswith("level_embedding") or absent:
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

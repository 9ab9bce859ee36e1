"""The denoiser: Stable Diffusion's U-Net on frames, with adaptors and temporal attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.models.adaptor import build_adaptor, repeat_for_frames
from magicvideo.models.blocks import (
    BlockConfig,
    BlockContext,
    ConvType,
    DownBlock,
    FrameCache,
    MidBlock,
    UpBlock,
)
from magicvideo.models.temporal_attention import TemporalMode
from magicvideo.shapes import Latents, Tokens

# Stable Diffusion's levels: highest resolution first; lowest resolution first
DOWN_BLOCK_TYPES = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
UP_BLOCK_TYPES = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
PerVideo: TypeAlias = Shaped[Tensor, "..."] | float | int
# sinusoidal embeddings resolve values in the hundreds, like diffusion steps; scores are near 1
_MOTION_SCALE = 100.0
_LEVELS = {
    "CrossAttnDownBlock2D": True,
    "DownBlock2D": False,
    "CrossAttnUpBlock2D": True,
    "UpBlock2D": False,
}


@dataclass
class VideoUNetOutput(BaseOutput):
    """Output of `VideoUNet`.

    Attributes:
        sample: Predicted noise or velocity, `b f out h w`.
    """

    sample: Tensor


def latent_size(sample_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a network's training latents.

    Args:
        sample_size: As in the network's configuration: one side, or height and width.
    """
    if isinstance(sample_size, int):
        return sample_size, sample_size
    height, width = sample_size
    return height, width


class VideoUNet(ModelMixin, ConfigMixin):
    """Predict the noise or velocity of a video's latents.

    Source: MagicVideo, Figures 3a and 3b. Parameters shared with the image network have the names
    of diffusers' `UNet2DConditionModel`. New are the adaptors, temporal attention, and the
    embeddings of frame rate and motion. Their initial values are neutral, so a network
    initialized from image weights equals the image network frame by frame.

    Args:
        sample_size: Side of the training latents, or their height and width; other sizes work too.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        down_block_types: `CrossAttnDownBlock2D` or `DownBlock2D` per level, highest resolution
            first.
        up_block_types: `CrossAttnUpBlock2D` or `UpBlock2D` per level, lowest resolution first.
        block_out_channels: Channels of each level, highest resolution first.
        layers_per_block: Residual blocks per level.
        cross_attention_dim: Width of the condition's tokens.
        attention_head_dim: Number of attention heads, one number or one per level (Stable
            Diffusion's configurations in diffusers store the number of heads under this name).
        norm_num_groups: Groups of every group norm.
        use_linear_projection: Linear layers (Stable Diffusion 2.x) around the transformers, in
            place of 1x1 convolutions (1.x).
        num_frames: Maximal number of frames.
        temporal_attention: Mode of the temporal attention, or `none`.
        frame_adaptor: Whether convolutions have frame-wise adaptors.
        noise_level: Whether the network is conditioned on the noise level of its conditioning
            images.
        spatial_attention: Whether positions of a frame attend to each other. If False, the spatial
            branch has only cross-attention and feed-forward.
        convolutions: `2d` for kernels shared by all frames. For the ablation of the adaptors,
            `2+1d` adds a temporal kernel over three frames after each convolution, and `3d` uses
            3x3x3 kernels. Both start as the image network, and are causal if temporal attention is
            `directed`.
        motion_condition: Whether the network is conditioned on a motion score.
        motion_mean: Mean of `motion_amount` over the training clips.
        motion_std: Standard deviation of `motion_amount` over the training clips.
        flow_map: Whether the network is a flow map, conditioned on the distance to a target
            timestep (`diffusion.flow_map`).

    Raises:
        ValueError: If arguments do not fit each other.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("DownBlock", "MidBlock", "UpBlock")  # FSDP and compile units

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 32,  # noqa: ARG002 - registered
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: Sequence[str] = DOWN_BLOCK_TYPES,
        up_block_types: Sequence[str] = UP_BLOCK_TYPES,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        cross_attention_dim: int = 768,
        attention_head_dim: int | Sequence[int] = 8,
        norm_num_groups: int = 32,
        use_linear_projection: bool = False,
        num_frames: int = 16,
        temporal_attention: TemporalMode = "directed",
        frame_adaptor: bool = True,
        noise_level: bool = False,
        spatial_attention: bool = True,
        convolutions: ConvType = "2d",
        motion_condition: bool = False,
        motion_mean: float = 0.0,  # noqa: ARG002 - registered
        motion_std: float = 1.0,  # noqa: ARG002 - registered
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        channels = tuple(block_out_channels)
        heads = _per_level(attention_head_dim, len(channels))
        down = _heads_of(down_block_types, heads, "down_block_types")
        up = _heads_of(up_block_types, heads[::-1], "up_block_types")
        # as in Stable Diffusion, the time embedding is four times as wide as the first level
        block_config = BlockConfig(
            time_embed_dim=4 * channels[0],
            cross_attention_dim=cross_attention_dim,
            num_groups=norm_num_groups,
            linear_projection=use_linear_projection,
            num_frames=num_frames,
            temporal_attention=temporal_attention,
            frame_adaptor=frame_adaptor,
            spatial_attention=spatial_attention,
            convolutions=convolutions,
        )
        first, width = channels[0], block_config.time_embed_dim
        # one sinusoidal projection for all scalar conditions; each has its own two-layer MLP
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, width)
        self.fps_embedding = _silent_embedding(first, width)
        self.level_embedding = _silent_embedding(first, width) if noise_level else None
        self.motion_embedding = _silent_embedding(first, width) if motion_condition else None
        self.interval_embedding = _silent_embedding(first, width) if flow_map else None
        self.conv_in = block_config.build_conv(in_channels, first)
        self.conv_in_adaptor = build_adaptor(num_frames, first, enabled=frame_adaptor)
        self.down_blocks = _down_blocks(channels, layers_per_block, down, block_config)
        self.mid_block = MidBlock(channels[-1], heads[-1], block_config)
        self.up_blocks = _up_blocks(channels, layers_per_block, up, block_config)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=1e-5)
        self.conv_out = block_config.build_conv(first, out_channels)
        self.conv_out_adaptor = build_adaptor(num_frames, out_channels, enabled=frame_adaptor)

    def forward(
        self,
        sample: Float[Tensor, "..."],
        timestep: PerVideo,
        encoder_hidden_states: Float[Tensor, "_ l d"],
        fps: PerVideo,
        noise_level: PerVideo | None = None,
        motion: PerVideo | None = None,
        *,
        target_timestep: PerVideo | None = None,
        past: FrameCache | None = None,
        record: FrameCache | None = None,
        return_dict: bool = True,
    ) -> VideoUNetOutput | tuple[Float[Tensor, "b f out h w"]]:
        """Predict the noise or the velocity of noisy latents.

        A number, or a tensor with one element, applies to the whole batch.

        Args:
            sample: Noisy latents, `b f c h w`, in any precision; the network computes in the
                precision of its weights.
            timestep: Diffusion step: a number, one per video `b`, or one per frame `b f`. Given
                (clean) frames have step 0.
            encoder_hidden_states: Condition of each video: text tokens, or tokens of image
                embeddings, `b l d`.
            fps: Frames per second: a number, or one per video.
            noise_level: Diffusion step up to which the conditioning images were noised: a number,
                or one per video. Required if and only if the network has `noise_level`.
            motion: Motion score: a number, or one per video, in standard deviations from the mean
                of the training clips; NaN (or None for all) if unknown. Needs `motion_condition`.
            target_timestep: Target step of the flow map, in the form of `timestep`, by default
                equal to it; negative for clean latents. Needs `flow_map`.
            past: Cache of the frames that precede these in each video (`cache_frames`).
            record: An empty cache to fill with the keys and values of these frames.
            return_dict: Return a `VideoUNetOutput`; if False, a tuple.

        Raises:
            ValueError: If the axis order is wrong, the video has too many frames, the number of
                values does not match the batch, the noise level is missing or not supported, or a
                motion score is not supported.
        """
        self._check_sample(sample, 0 if past is None else past.num_frames)
        batch, num_frames = sample.shape[:2]
        embedding = self._embed_time(
            _as_batch("timestep", timestep, sample, per_frame=True),
            _as_batch("fps", fps, sample),
            None if noise_level is None else _as_batch("noise_level", noise_level, sample),
            None if motion is None else _as_batch("motion", motion, sample),
            None
            if target_timestep is None
            else _as_batch("target_timestep", target_timestep, sample, per_frame=True),
        )
        if len(encoder_hidden_states) != batch:
            raise ValueError(
                f"encoder_hidden_states has {len(encoder_hidden_states)} conditions and sample "
                f"has {batch} videos"
            )
        context = BlockContext(embedding, encoder_hidden_states, num_frames, past, record)
        first = context.first_frame
        # fold frames into the batch, so 2D convolutions and spatial attention process images
        x = rearrange(sample, "b f c h w -> (b f) c h w").to(self.conv_in.weight.dtype)
        x = self.conv_in_adaptor(self.conv_in(x, num_frames), num_frames, first_frame=first)
        # U-Net: the encoder's outputs are concatenated to the decoder's inputs at equal resolution
        skips = [x]
        for down in self.down_blocks:
            skips.extend(down(skips[-1], context))
        x = self.mid_block(skips[-1], context)
        num_layers = self.config.layers_per_block + 1
        for up in self.up_blocks:
            taken, skips = skips[-num_layers:], skips[:-num_layers]
            # upsample to the size of the next skip connection, so odd sides work too
            side = skips[-1].shape[-2:] if skips else x.shape[-2:]
            x = up(x, taken, context, side)
        x = self.conv_out(F.silu(self.conv_norm_out(x)), num_frames)
        x = self.conv_out_adaptor(x, num_frames, first_frame=first)
        prediction = rearrange(x, "(b f) c h w -> b f c h w", f=num_frames)
        return VideoUNetOutput(sample=prediction) if return_dict else (prediction,)

    def _check_sample(self, sample: Tensor, num_past: int) -> None:
        channels, longest = self.config.in_channels, self.config.num_frames
        shape = tuple(sample.shape)
        if len(shape) != 5:
            raise ValueError(f"sample has the shape {shape}; it must have five axes, b f c h w")
        if shape[2] != channels:
            hint = "; it looks like b c f h w, so transpose axes 1 and 2"
            raise ValueError(
                f"sample has the shape {shape}; the axes are b f c h w, and axis 2 must have "
                f"in_channels={channels}{hint if shape[1] == channels else ''}"
            )
        all_frames = shape[1] + num_past
        if all_frames > longest:
            raise ValueError(f"the video has {all_frames} frames and the network at most {longest}")

    @property
    def can_cache_frames(self) -> bool:
        """Whether no frame depends on later ones, as `cache_frames` requires."""
        directed = self.config.temporal_attention in ("directed", "none")
        return directed and self.config.convolutions == "2d"

    @torch.no_grad()
    def cache_frames(
        self,
        latents: Latents,
        tokens: Tokens,
        fps: Float[Tensor, "b"],
        motion: Float[Tensor, "b"] | None = None,
    ) -> FrameCache:
        """Compute the keys and values of given, clean first frames once.

        A forward pass over only the following frames, with the result as `past`, equals (up to
        rounding) the pass over all frames in which the given ones have diffusion step 0.

        Args:
            latents: The first frames of each video, without noise, `b f c h w`.
            tokens: Condition of each video.
            fps: Frames per second of each video.
            motion: As for `forward`.

        Raises:
            ValueError: If frames depend on later ones, because temporal attention is not directed
                or convolutions span frames.
        """
        if self.config.temporal_attention not in ("directed", "none"):
            raise ValueError(
                f"temporal_attention={self.config.temporal_attention!r} lets frames depend on "
                "later ones; only with 'directed' can the first frames be computed once"
            )
        if self.config.convolutions != "2d":
            raise ValueError(
                f"convolutions={self.config.convolutions!r} span frames; only with '2d' can the "
                "first frames be computed once"
            )
        cache = FrameCache(latents.shape[1])
        self(latents, 0, tokens, fps, motion=motion, record=cache)
        return cache

    def _embed_time(
        self,
        timestep: Shaped[Tensor, "b"] | Shaped[Tensor, "b f"],
        fps: Shaped[Tensor, "b"],
        noise_level: Shaped[Tensor, "b"] | None,
        motion: Shaped[Tensor, "b"] | None,
        target: Shaped[Tensor, "b"] | Shaped[Tensor, "b f"] | None,
    ) -> Float[Tensor, "_ d"]:
        """Return SiLU(emb_t + emb_fps + ...), with emb_v = Linear(SiLU(Linear(sinusoids(v))))."""
        dtype = self.time_embedding.linear_1.weight.dtype
        steps = self.time_embedding(self.time_proj(timestep.flatten()).to(dtype))
        # conditions are summed before SiLU, as diffusers adds class embeddings; each starts as zero
        total = steps + repeat_for_frames(
            self.fps_embedding(self.time_proj(fps).to(dtype)), len(steps)
        )
        if (self.level_embedding is None) != (noise_level is None):
            raise ValueError("noise_level is for networks with noise_level=True, which need it")
        if self.level_embedding is not None and noise_level is not None:
            level = self.level_embedding(self.time_proj(noise_level).to(dtype))
            total = total + repeat_for_frames(level, len(steps))
        if motion is not None:
            if self.motion_embedding is None:
                raise ValueError("motion is for networks with motion_condition=True")
            embedded = self.time_proj(_MOTION_SCALE * motion.nan_to_num()).to(dtype)
            # unknown motion scores contribute nothing, like a model without motion condition
            known = (~motion.isnan()).to(dtype)[:, None]
            total = total + repeat_for_frames(self.motion_embedding(embedded) * known, len(steps))
        if target is not None and self.interval_embedding is None:
            raise ValueError("target_timestep is for networks with flow_map=True")
        if self.interval_embedding is not None:
            # given frames have step 0, and stay at step 0 whatever the target
            # a flow map u(y, t, r) is conditioned on t - r besides t
            interval = _interval(timestep, timestep if target is None else target).flatten()
            total = total + self.interval_embedding(self.time_proj(interval).to(dtype))
        return F.silu(total)


def _as_batch(name: str, value: PerVideo, sample: Latents, *, per_frame: bool = False) -> Tensor:
    """Return one value per video (or, if allowed and given, per frame) on the sample's device."""
    batch, num_frames = sample.shape[:2]
    if not isinstance(value, Tensor):
        # independent of torch's default dtype, which a caller may have changed
        value = torch.tensor(value, dtype=torch.float32 if isinstance(value, float) else None)
    value = value.to(sample.device)
    if value.numel() == 1:
        return value.reshape(1).expand(batch)
    allowed = [(batch,), (batch, num_frames)] if per_frame else [(batch,)]
    if tuple(value.shape) not in allowed:
        shapes = " or ".join(map(str, allowed))
        raise ValueError(
            f"{name} has the shape {tuple(value.shape)}; it must be one number or "
            f"have the shape {shapes}"
        )
    return value


def _interval(
    timestep: Shaped[Tensor, "..."], target: Shaped[Tensor, "..."]
) -> Shaped[Tensor, "..."]:
    """Return the number of diffusion steps between timestep and target."""
    if timestep.ndim < target.ndim:
        raise ValueError("target_timestep is given for each frame, and timestep is not")
    if timestep.ndim > target.ndim:
        target = target[:, None]
    return (timestep - target.clamp_min(0)).clamp_min(0)


def _silent_embedding(channels: int, width: int) -> TimestepEmbedding:
    """Return an embedding initialized to zero, so the network starts as the image network."""
    embedding = TimestepEmbedding(channels, width)
    nn.init.zeros_(embedding.linear_2.weight)
    nn.init.zeros_(embedding.linear_2.bias)
    return embedding


def _per_level(value: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    values = (value,) * num_levels if isinstance(value, int) else tuple(value)
    if len(values) != num_levels:
        raise ValueError(f"attention_head_dim={value} does not fit {num_levels} levels")
    return values


def _heads_of(types: Sequence[str], heads: tuple[int, ...], name: str) -> list[int | None]:
    """Return the number of attention heads of each level, None without attention."""
    if unknown := [t for t in types if t not in _LEVELS]:
        raise ValueError(f"{name} has {unknown[0]!r}; allowed are {', '.join(_LEVELS)}")
    if len(types) != len(heads):
        raise ValueError(f"{name} has {len(types)} levels and block_out_channels {len(heads)}")
    return [number if _LEVELS[t] else None for t, number in zip(types, heads, strict=True)]


def _down_blocks(
    channels: tuple[int, ...], num_layers: int, heads: list[int | None], block_config: BlockConfig
) -> nn.ModuleList:
    """Return the encoder's blocks, highest resolution first."""
    last = len(channels) - 1
    return nn.ModuleList(
        DownBlock(widths, num_layers, heads[i], block_config, is_last=i == last)
        for i, widths in enumerate(pairwise((channels[0], *channels)))
    )


def _up_blocks(
    channels: tuple[int, ...], num_layers: int, heads: list[int | None], block_config: BlockConfig
) -> nn.ModuleList:
    """Return the decoder's blocks, lowest resolution first."""
    skips = _skip_channels(channels, num_layers)
    blocks = nn.ModuleList()
    before = channels[-1]
    for i, width in enumerate(reversed(channels)):
        taken = tuple(skips.pop() for _ in range(num_layers + 1))
        incoming = (before, *[width] * num_layers)
        is_last = i == len(channels) - 1
        blocks.append(UpBlock(width, incoming, taken, heads[i], block_config, is_last=is_last))
        before = width
    return blocks


def _skip_channels(channels: tuple[int, ...], num_layers: int) -> list[int]:
    """Return the channels of the skip connections, in the order of the encoder."""
    skips = [channels[0]]
    for i, width in enumerate(channels):
        skips += [width] * num_layers
        if i < len(channels) - 1:
            skips.append(width)
    return skips


class FlowMapUNet:
    """A U-Net with `flow_map` that adds the target of each sampler step to its inputs.

    Args:
        unet: The network.
        target_of: Maps a diffusion step to its target: `FlowMapScheduler.target_of`.
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
        """Return the prediction for one step; the arguments are those of `VideoUNet`.

        Given frames have timestep 0; all others share one timestep.
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
        """Compute the cache of given frames: `VideoUNet.cache_frames`."""
        return self.unet.cache_frames(latents, tokens, fps, motion)

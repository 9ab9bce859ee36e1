"""VideoVAE: both autoencoders with temporal attention in the decoder.

Tensors of the image autoencoders keep their names, so that image weights such as Stable
Diffusion's load by name (`inflate_autoencoder`). New tensors are `temporal_mid` and `temporal_up`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from magicvideo.errors import UserError
from magicvideo.limits import parse_json
from magicvideo.models.autoencoder import (
    Autoencoder,
    Features,
    PatchAutoencoder,
    TemporalDecoderMixin,
    sample_posterior,
)
from magicvideo.models.inflate import inflate
from magicvideo.models.temporal_attention import DirectedTemporalAttention
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import FoldedFrames

_ENCODER = ("encoder", "quant_conv")


class VideoPatchAutoencoder(TemporalDecoderMixin, PatchAutoencoder):
    """A `PatchAutoencoder` whose decoder attends to earlier frames.

    Temporal attention follows the residual blocks at the latents' resolution, and the first block
    at twice that resolution. The linear decoder processes single frames.

    Args:
        in_channels: As for `PatchAutoencoder`, like all arguments up to `scaling_factor`.
        latent_channels: Channels of the latents.
        patch_size: Side in pixels of the patch of one latent position.
        widths: Channels of the convolutions; multiples of `temporal_heads`.
        encoder_layers: Residual blocks of the encoder.
        decoder_layers: Residual blocks of the decoder; the first number is at least 1.
        norm_num_groups: Groups of the group norms.
        noise_std: Standard deviation of the posterior, relative to that of the latents.
        scaling_factor: One over the standard deviation of the latents.
        temporal_heads: Attention heads of both temporal layers.
        temporal_window_size: Number of frames each frame attends to, including itself.

    Raises:
        ValueError: If the sizes are inconsistent.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 16,
        patch_size: int = 8,
        widths: Sequence[int] = (96, 192),
        encoder_layers: Sequence[int] = (1, 1),
        decoder_layers: Sequence[int] = (2, 3),
        norm_num_groups: int = 16,
        noise_std: float = 0.05,
        scaling_factor: float = 1.0,
        temporal_heads: int = 4,
        temporal_window_size: int = 16,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            latent_channels=latent_channels,
            patch_size=patch_size,
            widths=widths,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            norm_num_groups=norm_num_groups,
            noise_std=noise_std,
            scaling_factor=scaling_factor,
        )
        fine, coarse = widths
        if decoder_layers[0] < 1:
            raise ValueError(f"decoder_layers={decoder_layers}: the first must be at least 1")
        self.temporal_mid = DirectedTemporalAttention(
            coarse, temporal_heads, window_size=temporal_window_size
        )
        self.temporal_up = DirectedTemporalAttention(
            fine, temporal_heads, window_size=temporal_window_size
        )

    def forward(
        self,
        x: FoldedFrames,
        generator: StackedGenerator,
        num_frames: int = 1,
        noise_levels: Float[Tensor, " b"] | None = None,
        common_noise: float = 0.0,
    ) -> tuple[FoldedFrames, Features]:
        """Return the reconstruction of videos from a sample of their posterior, and its mean.

        `noise_levels` replace the posterior's standard deviation: noise on the scaled latents of
        each video. The fraction `common_noise` of its variance is shared by all positions of a
        frame.
        """
        return _reconstruct(self, x, generator, num_frames, noise_levels, common_noise)

    def _to_mid(self, z: FoldedFrames) -> Features:
        return self.decoder.to_mid(z * self.config.scaling_factor)

    def _to_up(self, x: Features) -> Features:
        return self.decoder.to_up(x)

    def _to_pixels(self, x: Features, z: FoldedFrames) -> Features:
        return self.decoder_linear(z) + self.decoder.to_pixels(x)


class VideoAutoencoderKL(TemporalDecoderMixin, AutoencoderKL):
    """A diffusers `AutoencoderKL` whose decoder attends to earlier frames.

    Temporal attention follows `decoder.mid_block` and `decoder.up_blocks[0]`. Decoding in chunks
    of frames bounds the memory, so diffusers' slicing and tiling are not used.

    Args:
        in_channels: As for `AutoencoderKL`, like all arguments up to `mid_block_add_attention`.
        out_channels: Channels of the reconstruction.
        down_block_types: Levels of the encoder.
        up_block_types: Levels of the decoder.
        block_out_channels: Channels of each level; the last a multiple of `temporal_heads`.
        layers_per_block: Residual blocks per level.
        act_fn: Activation.
        latent_channels: Channels of the latents.
        norm_num_groups: Groups of every group norm.
        sample_size: Side of the training images.
        scaling_factor: One over the standard deviation of the latents.
        shift_factor: Mean of the latents.
        latents_mean: Mean of each channel of the latents.
        latents_std: Standard deviation of each channel of the latents.
        force_upcast: Whether half precision overflows.
        use_quant_conv: Whether a convolution follows the encoder.
        use_post_quant_conv: Whether a convolution precedes the decoder.
        mid_block_add_attention: Whether the middle blocks have spatial attention.
        temporal_heads: Attention heads of both temporal layers.
        temporal_window_size: Number of frames each frame attends to, including itself.

    Raises:
        ValueError: If the sizes are inconsistent.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        temporal_heads: int = 8,
        temporal_window_size: int = 16,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )
        channels = block_out_channels[-1]
        self.temporal_mid = DirectedTemporalAttention(
            channels, temporal_heads, window_size=temporal_window_size
        )
        self.temporal_up = DirectedTemporalAttention(
            channels, temporal_heads, window_size=temporal_window_size
        )

    def forward(
        self,
        x: FoldedFrames,
        generator: StackedGenerator,
        num_frames: int = 1,
        noise_levels: Float[Tensor, " b"] | None = None,
        common_noise: float = 0.0,
    ) -> tuple[FoldedFrames, Features]:
        """Return the reconstruction of videos from a sample of their posterior, and its mean.

        `noise_levels` replace the posterior's standard deviation: noise on the scaled latents of
        each video. The fraction `common_noise` of its variance is shared by all positions of a
        frame.
        """
        return _reconstruct(self, x, generator, num_frames, noise_levels, common_noise)

    def _to_mid(self, z: FoldedFrames) -> Features:
        # diffusers' decoder up to the middle block, split so that temporal attention can follow
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self._pass(self.decoder.mid_block, self.decoder.conv_in(z))

    def _to_up(self, x: Features) -> Features:
        return self._pass(self.decoder.up_blocks[0], x)

    def _to_pixels(
        self,
        x: Features,
        z: FoldedFrames,  # noqa: ARG002 - pixels come from features alone
    ) -> Features:
        decoder = self.decoder
        for block in decoder.up_blocks[1:]:
            x = self._pass(block, x)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))

    def _pass(self, block: nn.Module, x: FoldedFrames) -> Features:
        # replaces the check of this flag in the decoder's own forward, which is not called
        if self.decoder.gradient_checkpointing and is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


VideoAutoencoder: TypeAlias = VideoPatchAutoencoder | VideoAutoencoderKL


def inflate_autoencoder(
    image: Autoencoder, temporal_heads: int, temporal_window_size: int
) -> VideoAutoencoder:
    """Return the video form of an image autoencoder; its temporal layers add zero.

    Frame by frame it equals the image autoencoder. If `image` is already a video autoencoder, all
    its weights are copied.

    Raises:
        ValueError: If `temporal_heads` does not divide the channels of the decoder.
    """
    kind = VideoPatchAutoencoder if isinstance(image, PatchAutoencoder) else VideoAutoencoderKL
    config = {name: value for name, value in image.config.items() if not name.startswith("_")}
    temporal = {"temporal_heads": temporal_heads, "temporal_window_size": temporal_window_size}
    video: VideoAutoencoder = kind(**config | temporal)
    inflate(video, image.state_dict())
    return video


def freeze_encoder(autoencoder: VideoAutoencoder) -> None:
    """Freeze the encoder, whose latents denoisers use, and train the rest."""
    for name, parameter in autoencoder.named_parameters():
        parameter.requires_grad_(not name.startswith(_ENCODER))


def _reconstruct(
    autoencoder: VideoAutoencoder,
    x: FoldedFrames,
    generator: StackedGenerator,
    num_frames: int,
    noise_levels: Float[Tensor, " b"] | None,
    common_noise: float,
) -> tuple[FoldedFrames, Features]:
    posterior = autoencoder.encode(x).latent_dist
    if noise_levels is None:
        code = sample_posterior(posterior, generator)
    else:
        # noise levels are given for scaled latents, z * scaling_factor; the code z is unscaled
        levels = noise_levels.repeat_interleave(num_frames) / autoencoder.config.scaling_factor
        own = generator.normal(posterior.mean.shape)
        common = generator.normal((*own.shape[:2], 1, 1))
        # unit variance, of which the fraction `common_noise` is shared by all positions of a frame:
        # flicker of whole frames, which only earlier frames can correct
        noise = (1 - common_noise) ** 0.5 * own + common_noise**0.5 * common
        code = posterior.mode() + levels[:, None, None, None] * noise.to(posterior.mean)
    return autoencoder.decode(code, num_frames).sample, posterior.mean


AUTOENCODERS: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (PatchAutoencoder, AutoencoderKL, VideoPatchAutoencoder, VideoAutoencoderKL)
}


def load_autoencoder(folder: Path) -> Autoencoder:
    """Load the autoencoder in a component's folder, in float32 and evaluation mode.

    Raises:
        UserError: If the class in its configuration is unknown.
    """
    loaded: Autoencoder = read_autoencoder_class(folder).from_pretrained(
        folder, local_files_only=True
    )
    return loaded.float().eval()


def autoencoder_from_config(settings: Mapping[str, Any]) -> Autoencoder:
    """Build an autoencoder with initial weights.

    Args:
        settings: The stored configuration, including the class name.

    Raises:
        UserError: If the class is unknown.
    """
    kind = AUTOENCODERS.get(settings.get("_class_name", ""))
    if kind is None:
        raise UserError(
            f"_class_name of an autoencoder is {settings.get('_class_name')!r}; it must be one of "
            f"{', '.join(AUTOENCODERS)}."
        )
    autoencoder: Autoencoder = kind.from_config(dict(settings))
    return autoencoder


def autoencoder_from_config_meta(settings: Mapping[str, Any]) -> Autoencoder:
    """Build an autoencoder on the meta device, without weights, to read its sizes."""
    with torch.device("meta"):
        return autoencoder_from_config(settings)


def read_autoencoder_class(folder: Path) -> type[Any]:
    """Return the class named by the configuration in a component's folder.

    Raises:
        UserError: If the class is unknown.
    """
    try:
        config: Any = parse_json((folder / "config.json").read_text())
        return AUTOENCODERS[config["_class_name"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is not an autoencoder: _class_name in its config.json must be one of "
            f"{', '.join(AUTOENCODERS)}; give the folder vae of a model or of a stage's output."
        ) from None

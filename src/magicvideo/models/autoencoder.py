"""Conversion between pixels and latents: two autoencoders with one interface.

At the paper's scale, frames are encoded with Stable Diffusion's `AutoencoderKL` from diffusers. The
`PatchAutoencoder` in this file is small enough to train on a CPU. Both have
`encode(x).latent_dist`, `decode(z).sample`, `config.scaling_factor` and `config.latent_channels`;
other modules use `encode_frames`, `decode_latents` and `iter_decode`. `video_vae` defines their
video forms.

The VideoVAE's decoder has two directed temporal attention layers against flicker (MagicVideo,
according to secondary sources). Their position is our choice: after the middle block, at the
latents' resolution, and after the first up block, at twice that resolution (departure D15 in
docs/paper_map.md).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeAlias

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.models.temporal_attention import DirectedTemporalAttention, KVCache
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import FoldedFrames, Frames, Latents

Features: TypeAlias = Float[Tensor, "n _ _ _"]
"""Features of folded frames; channels and resolution depend on the layer."""
DecoderCache: TypeAlias = tuple[KVCache, KVCache]
"""Keys and values of earlier frames for both layers; at most `window_size` - 1 frames each."""


class TemporalDecoderMixin(ABC):
    """Adds temporal attention to the decoder of an image autoencoder.

    List it before the image class among the bases. The temporal layers start as zero, so an
    untrained video decoder equals the image decoder.
    """

    temporal_mid: DirectedTemporalAttention
    temporal_up: DirectedTemporalAttention

    def decode(self, z: FoldedFrames, num_frames: int = 1) -> DecoderOutput:
        """Decode unscaled latents of videos with `num_frames` frames each.

        By default every frame is a separate video.
        """
        return DecoderOutput(sample=self.decode_chunk(z, num_frames, None)[0])

    def decode_chunk(
        self, z: FoldedFrames, num_frames: int, cache: DecoderCache | None
    ) -> tuple[Features, DecoderCache]:
        """Decode a chunk of frames, and return the cache for the next chunk.

        Decoding in chunks gives the same frames as decoding at once.

        Args:
            z: Unscaled latents of the chunk, of one or several videos.
            num_frames: Frames of the chunk.
            cache: Returned for the previous chunk; None at the start of the videos.
        """
        before_mid, before_up = cache or (None, None)
        x = self._to_mid(z)
        # x + T-Attn(x): residual temporal attention, zero at initialization
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
        """Return pixels from the features after the first up block, and from the latents."""


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Linear patch embedding plus a residual convolutional correction.

    `init_from_pca` sets the linear part to the principal components of real patches, the optimal
    linear code. The last convolutions start as zero, so training starts from PCA. Convolutions run
    at the latents' resolution and twice that, never at full resolution, which is fast.

    Args:
        in_channels: Channels of the pixels.
        latent_channels: Channels of the latents.
        patch_size: Side in pixels of the patch of one latent position; even.
        widths: Channels of the convolutions at twice the latents' resolution, and at the latents'
            resolution.
        encoder_layers: Residual blocks of the encoder at these two resolutions.
        decoder_layers: Residual blocks of the decoder at these two resolutions.
        norm_num_groups: Groups of the group norms.
        noise_std: Standard deviation of the posterior, relative to that of the latents. Noise in
            training makes the decoder smooth, so that its latents are easier to diffuse.
        scaling_factor: One over the standard deviation of the latents.

    Raises:
        ValueError: If the patch size is odd or the noise is not positive.
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
        scaling_factor: float = 1.0,  # noqa: ARG002 - registered
    ) -> None:
        super().__init__()
        if patch_size % 2:
            raise ValueError(f"patch_size={patch_size} is odd; the convolutions need halves of it")
        if noise_std <= 0:
            raise ValueError(f"noise_std={noise_std} must be above zero")
        fine, coarse = widths
        half = patch_size // 2
        pixels = in_channels * half * half
        self.encoder_linear = nn.Conv2d(in_channels, latent_channels, patch_size, patch_size)
        self.decoder_linear = nn.ConvTranspose2d(
            latent_channels, in_channels, patch_size, patch_size
        )
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(half),
            nn.Conv2d(pixels, fine, 3, padding=1),
            *(ResidualBlock(fine, norm_num_groups) for _ in range(encoder_layers[0])),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * fine, coarse, 1),
            *(ResidualBlock(coarse, norm_num_groups) for _ in range(encoder_layers[1])),
            *_zero_head(coarse, latent_channels, norm_num_groups),
        )
        self.decoder = PatchDecoder(
            latent_channels, pixels, half, (fine, coarse), decoder_layers, norm_num_groups
        )

    def encode(self, x: FoldedFrames) -> AutoencoderKLOutput:
        """Return the posterior over unscaled latents of pixels in [-1, 1]."""
        # linear code plus convolutional residual, which starts as zero
        mean = self.encoder_linear(x) + self.encoder(x)
        # relative to the latents' standard deviation, 1 / scaling_factor
        std = self.config.noise_std / self.config.scaling_factor
        # log sigma^2 = 2 log sigma; constant, because the noise level is a setting and not learned
        log_variance = torch.full_like(mean, 2 * math.log(std))
        return AutoencoderKLOutput(
            latent_dist=DiagonalGaussianDistribution(torch.cat([mean, log_variance], dim=1))
        )

    def decode(self, z: FoldedFrames) -> DecoderOutput:
        """Decode unscaled latents to pixels, which may slightly exceed [-1, 1]."""
        # the convolutions get latents of unit variance; the linear decoder gets unscaled latents
        return DecoderOutput(
            sample=self.decoder_linear(z) + self.decoder(z * self.config.scaling_factor)
        )

    def forward(
        self, x: FoldedFrames, generator: StackedGenerator
    ) -> tuple[FoldedFrames, Float[Tensor, "n z y x"]]:
        """Return the reconstruction of pixels from a sample of their posterior, and its mean."""
        posterior = self.encode(x).latent_dist
        return self.decode(sample_posterior(posterior, generator)).sample, posterior.mean

    @torch.no_grad()
    def init_from_pca(self, frames: FoldedFrames) -> None:
        """Set the linear part to the principal components of the patches of some frames.

        Encoder z = P^T (x - mean) and decoder x = P z + mean, where the columns of P are the
        eigenvectors of the patches' covariance with the largest eigenvalues. The scaling factor
        becomes one over the standard deviation of the latents.
        """
        size = self.config.patch_size
        patches = rearrange(frames, "n c (h p) (w q) -> (n h w) (c p q)", p=size, q=size).double()
        mean = patches.mean(dim=0)
        # PCA minimizes the squared reconstruction error of all linear codes of this size
        # (Eckart-Young)
        covariance = torch.cov(patches.T, correction=0)
        variances, vectors = torch.linalg.eigh(covariance)
        # eigh sorts eigenvalues in ascending order: the principal components come last
        kept = vectors[:, -self.config.latent_channels :].flip(1)
        # the sign of an eigenvector is arbitrary; fix it for reproducible latents
        kept = kept * torch.where(kept.sum(dim=0) < 0, -1.0, 1.0)
        basis = rearrange(kept.T.float(), "d (c p q) -> d c p q", p=size, q=size)
        assert self.encoder_linear.bias is not None
        assert self.decoder_linear.bias is not None
        self.encoder_linear.weight.copy_(basis)
        # P^T (x - mean) = P^T x - P^T mean
        self.encoder_linear.bias.copy_(-(kept.T @ mean).float())
        self.decoder_linear.weight.copy_(basis)
        # a transposed convolution has one bias per colour channel: use the patch mean's average
        channels = rearrange(mean, "(c r) -> c r", r=size * size).mean(dim=1)
        self.decoder_linear.bias.copy_(channels.float())
        # an eigenvalue is the variance of its latent channel; one factor normalizes their mean
        variance = variances[-self.config.latent_channels :].mean()
        self.register_to_config(scaling_factor=float(variance**-0.5))


class PatchDecoder(nn.Sequential):
    """The convolutional decoder of a `PatchAutoencoder`, in three parts.

    `to_mid` runs at the latents' resolution, `to_up` doubles it and ends after its first residual
    block, `to_pixels` is the rest. A video decoder adds temporal attention after the first two. All
    modules are registered in one flat sequence, whose indices are the names in the state dict.

    Args:
        latent_channels: Channels of the latents.
        pixel_channels: Channels of the last convolution, before the pixel shuffle.
        upscale_factor: Factor of that pixel shuffle.
        widths: Channels at twice the latents' resolution, and at the latents' resolution.
        num_layers: Residual blocks at these two resolutions.
        num_groups: Groups of the group norms.
    """

    def __init__(
        self,
        latent_channels: int,
        pixel_channels: int,
        upscale_factor: int,
        widths: tuple[int, int],
        num_layers: Sequence[int],
        num_groups: int,
    ) -> None:
        fine, coarse = widths
        mid = [
            nn.Conv2d(latent_channels, coarse, 3, padding=1),
            *(ResidualBlock(coarse, num_groups) for _ in range(num_layers[1])),
        ]
        upsample = [nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2)]
        blocks = [ResidualBlock(fine, num_groups) for _ in range(num_layers[0])]
        head = [*_zero_head(fine, pixel_channels, num_groups), nn.PixelShuffle(upscale_factor)]
        super().__init__(*mid, *upsample, *blocks, *head)
        # plain tuples, because torch would register an `nn.ModuleList` again under other names
        self._stages = (tuple(mid), (*upsample, *blocks[:1]), (*blocks[1:], *head))

    def to_mid(self, z: FoldedFrames) -> Features:
        """Return the features at the latents' resolution."""
        return _run(self._stages[0], z)

    def to_up(self, x: Features) -> Features:
        """Return the features at twice that resolution, after its first residual block."""
        return _run(self._stages[1], x)

    def to_pixels(self, x: Features) -> Features:
        """Return the correction of the linear decoder's pixels."""
        return _run(self._stages[2], x)


def _run(modules: Iterable[nn.Module], x: Features) -> Features:
    for module in modules:
        x = module(x)
    return x


class ResidualBlock(nn.Module):
    """Two convolutions, each after a group norm and SiLU, and a residual."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: FoldedFrames) -> FoldedFrames:
        """Return the block's output."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def _zero_head(channels: int, out_channels: int, num_groups: int) -> list[nn.Module]:
    head = nn.Conv2d(channels, out_channels, 3, padding=1)
    nn.init.zeros_(head.weight)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return [nn.GroupNorm(num_groups, channels), nn.SiLU(), head]


def sample_posterior(
    posterior: DiagonalGaussianDistribution, generator: StackedGenerator
) -> Float[Tensor, "n z y x"]:
    """Return a sample of the posterior, mean + std * noise."""
    noise = generator.normal(posterior.mean.shape).to(posterior.mean)
    return posterior.mean + posterior.std * noise


Autoencoder: TypeAlias = PatchAutoencoder | AutoencoderKL


def encode_frames(
    autoencoder: Autoencoder, frames: Frames, generator: torch.Generator | None = None
) -> Latents:
    """Return the scaled latents of frames: the posterior's mode, or a sample of it.

    They have the precision of the frames, even if the network computes in a lower one: noise
    schedules and differences of latents need more precision than networks.

    Args:
        autoencoder: A `PatchAutoencoder` or diffusers' `AutoencoderKL`.
        frames: Pixels in [-1, 1].
        generator: If given, latents are sampled from the posterior with it.
    """
    folded = rearrange(frames, "b f c h w -> (b f) c h w").to(autoencoder.dtype)
    posterior = autoencoder.encode(folded).latent_dist
    code = posterior.mode() if generator is None else posterior.sample(generator)
    scaled = code.to(frames.dtype) * autoencoder.config.scaling_factor
    return rearrange(scaled, "(b f) c h w -> b f c h w", f=frames.shape[1])


def decode_latents(
    autoencoder: Autoencoder,
    latents: Latents,
    chunk: int = 16,
    on_chunk: Callable[[int, int], None] | None = None,
) -> Frames:
    """Decode scaled latents to frames, clamped to [-1, 1], in the latents' precision.

    Frames are decoded `chunk` at a time, so that memory does not grow with the video. The result
    does not depend on it: decoders with temporal attention cache earlier keys and values.

    Args:
        autoencoder: An image or video autoencoder.
        latents: Scaled latents of one or several videos.
        chunk: Number of frames decoded at a time.
        on_chunk: Called with the number of decoded frames (from 0) and the total.
    """
    folded = rearrange(latents, "b f c h w -> (b f) c h w")
    # an image decoder can decode frames of several videos together
    videos = latents.unbind() if isinstance(autoencoder, TemporalDecoderMixin) else [folded]
    parts: list[Tensor] = []
    if on_chunk is not None:
        on_chunk(0, len(folded))
    for part in chain.from_iterable(
        iter_decode(autoencoder, torch.split(video, chunk)) for video in videos
    ):
        parts.append(part)
        if on_chunk is not None:
            on_chunk(sum(map(len, parts)), len(folded))
    return rearrange(torch.cat(parts), "(b f) c h w -> b f c h w", f=latents.shape[1])


def iter_decode(
    autoencoder: Autoencoder, windows: Iterable[Float[Tensor, "_ c h w"]]
) -> Iterator[Float[Tensor, "f rgb height width"]]:
    """Decode the scaled latents of one video chunk by chunk, on demand.

    Values and precision are as for `decode_latents`.
    """
    cache = None
    for latents in windows:
        code = (latents / autoencoder.config.scaling_factor).to(autoencoder.dtype)
        if isinstance(autoencoder, TemporalDecoderMixin):
            frames, cache = autoencoder.decode_chunk(code, len(code), cache)
        else:
            frames = autoencoder.decode(code).sample
        yield frames.to(latents.dtype).clamp(-1, 1)


def vae_scale_factor(autoencoder: Autoencoder) -> int:
    """Return the ratio between the sides of frames and latents."""
    config = autoencoder.config
    if isinstance(autoencoder, PatchAutoencoder):
        return int(config.patch_size)
    return int(2 ** (len(config.block_out_channels) - 1))

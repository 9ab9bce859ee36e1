"""Stages `autoencoder` and `video_vae`: the image autoencoder and its video decoder."""

from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from magicvideo.data.dataset import Batch
from magicvideo.models.autoencoder import PatchAutoencoder, decode_latents, encode_frames
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.preview import LatentPreview
from magicvideo.models.video_vae import VideoAutoencoder, freeze_encoder
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Frames
from magicvideo.training.loader import BatchSource
from magicvideo.training.losses import image_gradient_loss, perceptual_distance
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import (
    AutoencoderStageConfig,
    PatchAutoencoderConfig,
    VideoVaeStageConfig,
)
from magicvideo.training.tasks.batches import to_device

_FRAMES_FOR_COMPONENTS = 2048
_PREVIEWED = 12
_PREVIEWED_CLIPS = 4
_FRAMES_FOR_PREVIEW_MAP = 64
_PREVIEW_MAP_STRIDE = 4  # adjacent frames are similar


class AutoencoderTask:
    """Train the autoencoder on single frames: L1, squared error, and L1 of image gradients.

    Args:
        network: The initialized autoencoder.
        config: The stage's settings.
        batches: Single frames of the training split.
    """

    def __init__(
        self, network: PatchAutoencoder, config: AutoencoderStageConfig, batches: BatchSource
    ) -> None:
        self.network, self.config, self.batches = network, config, batches

    def lr_scale(self, name: str) -> float:  # noqa: ARG002 - all parameters learn alike
        """Return the factor on the learning rate of a parameter."""
        return 1.0

    def losses(
        self, network: nn.Module, batch: Batch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the weighted sum, the squared error and the mean squared latents."""
        device = next(network.parameters()).device
        pixels = rearrange(batch.frames, "b f c h w -> (b f) c h w").to(
            device, memory_format=torch.channels_last
        )
        rebuilt, code = network(pixels, generator)
        squared = F.mse_loss(rebuilt, pixels)
        # keeps the scaled latents near unit variance, like the KL term of a VAE
        latents = (code * self.network.config.scaling_factor).square().mean()
        loss = (
            F.l1_loss(rebuilt, pixels)
            + self.config.squared_weight * squared
            + self.config.gradient_weight * image_gradient_loss(rebuilt, pixels)
            + self.config.kl_weight * latents
        )
        return {"loss": loss, "squared": squared.detach(), "latents": latents.detach()}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return frames above their reconstructions."""
        batch = self.batches.get_other_batch(2, 0, _PREVIEWED)
        assert isinstance(batch, Batch)
        frames = batch.frames.to(next(self.network.parameters()).device)
        rebuilt = decode_latents(self.network, encode_frames(self.network, frames))
        rows = torch.stack([frames[:, 0], rebuilt[:, 0]])
        return image_grid(rows, enlarge=2)

    def save(self, folder: Path) -> None:
        """Write the component `vae`, with its latent preview."""
        self.network.save_pretrained(folder / "vae")
        batch = self.batches.get_other_batch(3, 0, _FRAMES_FOR_PREVIEW_MAP)
        assert isinstance(batch, Batch)
        LatentPreview.fit_to_decoder(self.network, batch.frames).save(folder / "vae")


def init_autoencoder_from_pca(network: PatchAutoencoder, batches: BatchSource) -> None:
    """Initialize an autoencoder with the principal components of image patches."""
    # a different order than in training, so that these frames are not its first batches
    first = batches.get_other_batch(1, 0, _FRAMES_FOR_COMPONENTS)
    assert isinstance(first, Batch)
    network.init_from_pca(first.frames[:, 0])


def build_autoencoder(config: PatchAutoencoderConfig) -> PatchAutoencoder:
    """Build an autoencoder of the given sizes."""
    return PatchAutoencoder(
        latent_channels=config.latent_channels,
        patch_size=config.patch_size,
        widths=config.widths,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        norm_num_groups=config.norm_num_groups,
        noise_std=config.noise_std,
    )


class VideoVaeTask:
    """Train the video decoder: losses of the autoencoder, perceptual and temporal losses.

    The encoder is frozen, because denoisers use its latents. Latents of some clips get noise of a
    random level, to simulate generated latents. The noise is independent between frames, and partly
    shared by all positions of a frame; only earlier frames help to remove that part. The decoder
    thereby learns to remove flicker.

    Args:
        network: The video autoencoder. Its encoder is frozen here.
        image_encoder: CLIP's image encoder, which is frozen here.
        config: The stage's settings.
        batches: Clips of the training split.
    """

    def __init__(
        self,
        network: VideoAutoencoder,
        image_encoder: CLIPVisionModelWithProjection,
        config: VideoVaeStageConfig,
        batches: BatchSource,
    ) -> None:
        self.network, self.config, self.batches = network, config, batches
        self.image_encoder = image_encoder.requires_grad_(requires_grad=False).eval()
        freeze_encoder(network)

    def lr_scale(self, name: str) -> float:
        """Return the factor on the learning rate, which differs for the image decoder's weights."""
        return 1.0 if is_temporal_key(name) else self.config.pretrained_lr_scale

    def losses(
        self, network: nn.Module, batch: Batch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the weighted sum and its parts."""
        device = next(network.parameters()).device
        self.image_encoder.to(device)
        clips = batch.frames.to(device)
        pixels = rearrange(clips, "b f c h w -> (b f) c h w").contiguous(
            memory_format=torch.channels_last
        )
        levels = self.config.max_latent_noise * generator.uniform(len(clips))
        clean = generator.uniform(len(clips)) < self.config.clean_prob
        levels = levels.masked_fill(clean, 0.0)
        rebuilt, _ = network(
            pixels,
            generator,
            self.config.num_frames,
            to_device(levels, device),
            self.config.common_latent_noise,
        )
        made = rearrange(rebuilt, "(b f) c h w -> b f c h w", b=len(clips))
        parts = {
            "pixels": F.l1_loss(rebuilt, pixels),
            "squared": F.mse_loss(rebuilt, pixels),
            "gradient": image_gradient_loss(rebuilt, pixels),
            "perceptual": perceptual_distance(self.image_encoder, rebuilt, pixels),
            # motion: L1 between frame differences
            "temporal": F.l1_loss(made.diff(dim=1), clips.diff(dim=1)),
            "flicker": _flicker(made, clips),
        }
        loss = (
            parts["pixels"]
            + self.config.squared_weight * parts["squared"]
            + self.config.gradient_weight * parts["gradient"]
            + self.config.perceptual_weight * parts["perceptual"]
            + self.config.temporal_weight * parts["temporal"]
            + self.config.flicker_weight * parts["flicker"]
        )
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return some clips, each above its reconstruction."""
        device = next(self.network.parameters()).device
        batch = self.batches.get_other_batch(1, 0, _PREVIEWED_CLIPS)
        assert isinstance(batch, Batch)
        frames = batch.frames.to(device)
        made = decode_latents(self.network, encode_frames(self.network, frames))
        rows = torch.stack([frames, made], dim=1).flatten(0, 1)
        return image_grid(rows, enlarge=1)

    def save(self, folder: Path) -> None:
        """Write the component `vae`, with its latent preview."""
        self.network.save_pretrained(folder / "vae")
        batch = self.batches.get_other_batch(2, 0, _PREVIEWED_CLIPS)
        assert isinstance(batch, Batch)
        some = batch.frames[:, ::_PREVIEW_MAP_STRIDE]
        LatentPreview.fit_to_decoder(self.network, some).save(folder / "vae")


def _flicker(made: Frames, clips: Frames) -> Tensor:
    """Return the mean absolute frame difference at static pixels of a clip.

    Flicker is about 0.1 % of the pixel range and motion about 10 %, so a mean over all pixels would
    hide it, although it is visible.
    """
    still = (clips.diff(dim=1) == 0).all(dim=2, keepdim=True)
    changes = made.diff(dim=1).abs().mean(dim=2, keepdim=True)
    return (changes * still).sum() / still.sum().clamp(min=1)

"""Stage `autoencoder`: frames to latents and back."""

from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.data.dataset import Batch
from magicvideo.models.autoencoder import PatchAutoencoder, decode_latents, encode_frames
from magicvideo.models.preview import LatentPreview
from magicvideo.rng import StackedGenerator
from magicvideo.training.loader import BatchSource
from magicvideo.training.losses import image_gradient_loss
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import AutoencoderStageConfig, PatchAutoencoderConfig

_FRAMES_FOR_COMPONENTS = 2048
_PREVIEWED = 12
_FRAMES_FOR_PREVIEW_MAP = 64


class AutoencoderTask:
    """Reconstruct single frames: L1, squared error, and L1 between image gradients.

    Args:
        network: The autoencoder, initialised.
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
        """Return the weighted sum, the squared error and the size of the latents."""
        device = next(network.parameters()).device
        pixels = rearrange(batch.frames, "b f c h w -> (b f) c h w").to(
            device, memory_format=torch.channels_last
        )
        rebuilt, code = network(pixels, generator)
        squared = F.mse_loss(rebuilt, pixels)
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
        """Write the component `vae`, with the map by which its latents are shown."""
        self.network.save_pretrained(folder / "vae")
        batch = self.batches.get_other_batch(3, 0, _FRAMES_FOR_PREVIEW_MAP)
        assert isinstance(batch, Batch)
        LatentPreview.fit_to_decoder(self.network, batch.frames).save(folder / "vae")


def init_autoencoder_from_pca(network: PatchAutoencoder, batches: BatchSource) -> None:
    """Initialise an autoencoder with the principal components of patches of some frames."""
    # another order than training's, so that these frames are not its first batches
    first = batches.get_other_batch(1, 0, _FRAMES_FOR_COMPONENTS)
    assert isinstance(first, Batch)
    network.init_from_pca(first.frames[:, 0])


def build_autoencoder(config: PatchAutoencoderConfig) -> PatchAutoencoder:
    """Return a fresh autoencoder of the given sizes."""
    return PatchAutoencoder(
        latent_channels=config.latent_channels,
        patch_size=config.patch_size,
        widths=config.widths,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        norm_num_groups=config.norm_num_groups,
        noise_std=config.noise_std,
    )

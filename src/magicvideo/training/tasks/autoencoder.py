"""Stage `autoencoder`: frames to latents and back."""

from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.data.batch_order import load_batch
from magicvideo.data.dataset import Batch, ClipDataset
from magicvideo.models.autoencoder import PatchAutoencoder, decode_latents, encode_frames
from magicvideo.rng import StackedGenerator
from magicvideo.training.losses import image_gradient_loss
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import AutoencoderStageConfig, PatchAutoencoderConfig

_FRAMES_FOR_COMPONENTS = 2048
_PREVIEWED = 12


class AutoencoderTask:
    """Reconstruct single frames: L1, squared error, and L1 between image gradients.

    Args:
        network: The autoencoder, initialised.
        settings: The stage's settings.
        dataset: Clips of the training split.
        seed: Of the order of samples.
    """

    def __init__(
        self,
        network: PatchAutoencoder,
        settings: AutoencoderStageConfig,
        dataset: ClipDataset,
        seed: int,
    ) -> None:
        self.network = network
        self.settings, self.dataset, self.seed = settings, dataset, seed

    def get_batch(self, position: int) -> Batch:
        """Return single frames."""
        return load_batch(
            self.dataset,
            self.seed,
            position,
            self.settings.batch_size,
            num_frames=1,
            subject_balance=self.settings.subject_balance,
        )

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
            + self.settings.squared_weight * squared
            + self.settings.gradient_weight * image_gradient_loss(rebuilt, pixels)
            + self.settings.kl_weight * latents
        )
        return {"loss": loss, "squared": squared.detach(), "latents": latents.detach()}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return frames above their reconstructions."""
        batch = load_batch(self.dataset, self.seed + 2, 0, _PREVIEWED, num_frames=1)
        frames = batch.frames.to(next(self.network.parameters()).device)
        rebuilt = decode_latents(self.network, encode_frames(self.network, frames))
        rows = torch.stack([frames[:, 0], rebuilt[:, 0]])
        return image_grid(rows, enlarge=2)

    def save(self, folder: Path) -> None:
        """Write the component `vae`."""
        self.network.save_pretrained(folder / "vae")


def init_autoencoder_from_pca(network: PatchAutoencoder, dataset: ClipDataset, seed: int) -> None:
    """Let a fresh autoencoder begin as the best linear code of some frames."""
    # any seed would do, so long as these frames are not the first batches
    first = load_batch(dataset, seed + 1, 0, _FRAMES_FOR_COMPONENTS, num_frames=1)
    network.init_from_pca(first.frames[:, 0])


def build_autoencoder(settings: PatchAutoencoderConfig) -> PatchAutoencoder:
    """Return a fresh autoencoder of the given sizes."""
    return PatchAutoencoder(
        latent_channels=settings.latent_channels,
        patch_size=settings.patch_size,
        widths=settings.widths,
        encoder_layers=settings.encoder_layers,
        decoder_layers=settings.decoder_layers,
        norm_num_groups=settings.norm_num_groups,
        noise_std=settings.noise_std,
    )

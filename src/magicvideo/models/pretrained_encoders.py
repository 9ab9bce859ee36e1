"""Frozen pretrained encoders used by the denoiser."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from magicvideo.atomic_io import hash_component, verify_checksums
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import Autoencoder
from magicvideo.models.video_vae import load_autoencoder


@dataclass(frozen=True)
class FrozenEncoders:
    """The loaded encoders, which are frozen in the denoiser's stages."""

    vae: Autoencoder
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    image_encoder: CLIPVisionModelWithProjection | None

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        for network in self.networks():
            network.to(device)

    def networks(self) -> list[nn.Module]:
        """Return the networks among them."""
        found = (self.vae, self.text_encoder, self.image_encoder)
        return [network for network in found if network is not None]

    def freeze(self) -> None:
        """Disable their gradients and set evaluation mode."""
        for network in self.networks():
            network.requires_grad_(requires_grad=False).eval()


@dataclass(frozen=True)
class FrozenEncoderPaths:
    """Folders of the encoders, each in a folder with checksums."""

    vae: Path
    text_encoder: Path
    tokenizer: Path
    image_encoder: Path | None

    def load(self) -> FrozenEncoders:
        """Load the encoders in float32 and evaluation mode."""
        image_encoder = None
        if self.image_encoder is not None:
            image_encoder = CLIPVisionModelWithProjection.from_pretrained(
                self.image_encoder, dtype=torch.float32
            )
        return FrozenEncoders(
            vae=load_autoencoder(self.vae),
            text_encoder=CLIPTextModel.from_pretrained(self.text_encoder, dtype=torch.float32),
            tokenizer=CLIPTokenizer.from_pretrained(self.tokenizer),
            image_encoder=image_encoder,
        )

    def hashes(self) -> dict[str, str]:
        """Return the hash of each encoder by name."""
        return {
            name: hash_component(folder)
            for name, folder in asdict(self).items()
            if folder is not None
        }


def resolve_frozen_encoders(model: Path) -> FrozenEncoderPaths:
    """Verify a model folder and return the folders of its encoders.

    Raises:
        UserError: If it is not a model folder, is damaged, or lacks an encoder.
    """
    if not (model / "model_index.json").is_file():
        raise UserError(f"{model} is not a model folder: it has no model_index.json.")
    verify_checksums(model)
    folders = FrozenEncoderPaths(
        **{name: model / name for name in ("vae", "text_encoder", "tokenizer", "image_encoder")}
    )
    for name, folder in asdict(folders).items():
        if not folder.is_dir():
            raise UserError(f"The model {model} has no {name}; choose a model that has one.")
    return folders

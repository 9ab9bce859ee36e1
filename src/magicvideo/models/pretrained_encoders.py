"""The trained parts that the denoiser stands on, which its stages leave as they are."""

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
    """The parts, loaded; none of them changes in the denoiser's stages."""

    vae: Autoencoder
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    image_encoder: CLIPVisionModelWithProjection | None

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        for network in self.networks():
            network.to(device)

    def networks(self) -> list[nn.Module]:
        """Return those that are networks."""
        found = (self.vae, self.text_encoder, self.image_encoder)
        return [network for network in found if network is not None]

    def freeze(self) -> None:
        """Exclude them from training, and set them to evaluation."""
        for network in self.networks():
            network.requires_grad_(requires_grad=False).eval()


@dataclass(frozen=True)
class FrozenEncoderPaths:
    """Where the parts are: each in a folder of its own, inside a folder that carries its sums."""

    vae: Path
    text_encoder: Path
    tokenizer: Path
    image_encoder: Path | None

    def load(self) -> FrozenEncoders:
        """Return the parts in single precision, ready to evaluate."""
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
        """Return the identity of each part by its name."""
        return {
            name: hash_component(folder)
            for name, folder in asdict(self).items()
            if folder is not None
        }


def resolve_frozen_encoders(model: Path) -> FrozenEncoderPaths:
    """Return the folders of the parts in a model folder, which is checked.

    Raises:
        UserError: If it is no model folder, is damaged, or lacks a part.
    """
    if not (model / "model_index.json").is_file():
        raise UserError(f"{model} is no model folder: it has no model_index.json.")
    verify_checksums(model)
    folders = FrozenEncoderPaths(
        **{name: model / name for name in ("vae", "text_encoder", "tokenizer", "image_encoder")}
    )
    for name, folder in asdict(folders).items():
        if not folder.is_dir():
            raise UserError(f"The model {model} has no {name}; name one that has.")
    return folders

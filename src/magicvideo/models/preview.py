"""Previews: small frames from latents by a linear map, without the decoder."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from magicvideo.errors import UserError
from magicvideo.models.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_frames,
    vae_scale_factor,
)
from magicvideo.shapes import Frames, Latents

PREVIEW_FILE = "preview.safetensors"
_MOST_PIXELS = 4  # per side and latent position
_FIT_FRAMES = 48


@dataclass(frozen=True)
class LatentPreview:
    """A linear map from the latents at a position to its pixels.

    It is fitted by least squares, and much cheaper than the decoder, so it can show the estimate of
    the clean latents after each diffusion step.

    Attributes:
        weight: One row per pixel value, in the order `rgb p q` of a square of p x p pixels.
        bias: Bias of each pixel value.
    """

    weight: Float[Tensor, "out c"]
    bias: Float[Tensor, " out"]

    @property
    def side(self) -> int:
        """Return p, the number of pixels per side and latent position."""
        return math.isqrt(len(self.bias) // 3)

    @torch.no_grad()
    def __call__(self, latents: Latents) -> Frames:
        """Map latents to small frames, pixels in [-1, 1]."""
        weight, bias = self.weight.to(latents), self.bias.to(latents)
        pixels = torch.einsum("oc,bfchw->bfohw", weight, latents) + bias[:, None, None]
        folded = rearrange(
            pixels, "b f (rgb p q) h w -> b f rgb (h p) (w q)", p=self.side, q=self.side
        )
        return folded.clamp(-1, 1)

    @classmethod
    @torch.no_grad()
    def fit(cls, latents: Latents, frames: Frames, side: int) -> "LatentPreview":
        """Fit the map by least squares.

        Args:
            latents: Clean latents.
            frames: Their frames.
            side: Number of pixels per side and latent position.
        """
        height, width = latents.shape[-2:]
        small = F.interpolate(
            rearrange(frames.double(), "b f c h w -> (b f) c h w"),
            size=(side * height, side * width),
            mode="area",
        )
        seen = rearrange(latents.double(), "b f c h w -> (b f h w) c")
        wanted = rearrange(small, "n rgb (h p) (w q) -> (n h w) (rgb p q)", p=side, q=side)
        # a column of ones for the bias
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        # normal equations with a small ridge, which keeps them solvable for constant channels
        square = seen.T @ seen
        ridge = 1e-6 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
        solved = torch.linalg.solve(square + ridge.to(square), seen.T @ wanted)
        return cls(solved[:-1].T.float().contiguous(), solved[-1].float())

    @classmethod
    @torch.no_grad()
    def fit_to_decoder(cls, vae: Autoencoder, frames: Frames | None = None) -> "LatentPreview":
        """Fit the map to an autoencoder's decoder.

        Args:
            vae: The autoencoder.
            frames: Frames to fit on. If None, random latents are used: smoothed noise of unit
                variance.
        """
        side = min(_MOST_PIXELS, vae_scale_factor(vae))
        if frames is None:
            latents = _smooth_noise(int(vae.config.latent_channels)).to(vae.device, vae.dtype)
            return cls.fit(latents, decode_latents(vae, latents), side)
        return cls.fit(encode_frames(vae, frames.to(vae.device)), frames.to(vae.device), side)

    def save(self, folder: Path) -> None:
        """Save the map in the folder of the autoencoder."""
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        save_file(tensors, folder / PREVIEW_FILE, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path, latent_channels: int) -> "LatentPreview | None":
        """Load the map from the folder of an autoencoder; None if it has none.

        Raises:
            UserError: If the file is damaged, or does not fit the latents.
        """
        path = folder / PREVIEW_FILE
        if not path.is_file():
            return None
        try:
            tensors = load_file(path)
            weight, bias = tensors["weight"].float(), tensors["bias"].float()
        except (SafetensorError, OSError, KeyError):
            raise UserError(f"{path} is not a preview; get a new copy of the folder.") from None
        expected = (3 * math.isqrt(bias.numel() // 3) ** 2, latent_channels)
        is_map = bias.ndim == 1 and len(bias) > 0 and tuple(weight.shape) == expected
        is_finite = bool(weight.isfinite().all()) and bool(bias.isfinite().all())
        if not (is_map and len(bias) == len(weight) and is_finite):
            raise UserError(
                f"{path} does not fit latents of {latent_channels} channels; get a new copy of the "
                "folder."
            )
        return cls(weight, bias)


def _smooth_noise(channels: int) -> Float[Tensor, "1 f c h w"]:
    """Return random latents of varying smoothness, similar to latents of frames."""
    side, generator = 8, torch.Generator().manual_seed(0)
    frames = []
    for number in range(_FIT_FRAMES):
        grid = 1 + number % side
        noise = torch.randn((1, channels, grid, grid), generator=generator)
        frames.append(F.interpolate(noise, size=(side, side), mode="bilinear"))
    latents = torch.cat(frames)
    return (latents / latents.std())[None]

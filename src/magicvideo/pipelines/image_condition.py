"""Images as input: as a condition, or as the first frame of a video."""

import base64
from pathlib import Path, PurePath
from typing import TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from magicvideo.errors import UserError
from magicvideo.media import images
from magicvideo.models.autoencoder import Autoencoder, encode_frames
from magicvideo.models.conditioning import embed_frames
from magicvideo.pipelines.request import FirstFrame, ImageCondition
from magicvideo.shapes import FoldedFrames, Frames, Latents

Embedding: TypeAlias = Float32[np.ndarray, "e"]


@torch.no_grad()
def encode_image_condition(
    image_encoder: CLIPVisionModelWithProjection,
    image: Image.Image | str | Path,
    device: torch.device,
) -> ImageCondition:
    """Encode an image as a condition: its CLIP embedding.

    Args:
        image_encoder: CLIP's image encoder.
        image: A file or an image.
        device: Device of the computation.

    Raises:
        UserError: If the file is missing or not an image.
    """
    name, frames = load_image(image)
    embedding = embed_frames(image_encoder, frames.to(device))
    return to_image_condition(name, embedding[0, 0].cpu().numpy())


def to_image_condition(name: str, embedding: Embedding) -> ImageCondition:
    """Build the condition from an embedding."""
    encoded = base64.b64encode(embedding.astype("<f4").tobytes()).decode()
    return ImageCondition(name=name, embedding=encoded)


def embedding_of(condition: ImageCondition) -> Embedding:
    """Decode the embedding of a condition.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return np.frombuffer(base64.b64decode(condition.embedding, validate=True), "<f4").copy()
    except ValueError:
        raise UserError(
            "The embedding of the image is damaged; give the image itself with --image."
        ) from None


def load_image(image: Image.Image | str | Path) -> tuple[str, Frames]:
    """Return a picture's name and its pixels in [-1, 1], as one video of one frame.

    Raises:
        UserError: If the file is missing or no picture.
    """
    source = getattr(image, "filename", "") if isinstance(image, Image.Image) else image
    pixels = np.asarray(images.load_image(image), dtype=np.float32)
    frames = rearrange(torch.from_numpy(pixels / 127.5 - 1), "h w c -> 1 1 c h w")
    return PurePath(str(source)).name or "picture", frames


def fit_frames(
    frames: FoldedFrames, height: int, width: int
) -> Float[Tensor, "n c fitted_height fitted_width"]:
    """Scale frames to cover a size, and center-crop them.

    Args:
        frames: Pixels in [-1, 1] of any size.
        height: Height of the result.
        width: Width of the result.
    """
    here = frames.shape[-2:]
    if here == (height, width):
        return frames
    scale = max(height / here[0], width / here[1])
    covering = (max(height, round(here[0] * scale)), max(width, round(here[1] * scale)))
    scaled = F.interpolate(
        frames, size=covering, mode="bicubic", antialias=True, align_corners=False
    )
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return scaled[..., top : top + height, left : left + width].clamp(-1, 1)


@torch.no_grad()
def encode_first_frame(
    vae: Autoencoder,
    image: Image.Image | str | Path,
    height: int,
    width: int,
    device: torch.device,
) -> FirstFrame:
    """Encode an image as the first frame of a video.

    Args:
        vae: The model's autoencoder.
        image: A file or an image; transparent parts are white.
        height: Height of the key frames in pixels.
        width: Width of the key frames in pixels.
        device: Device of the computation.

    Raises:
        UserError: If the file is missing or not an image.
    """
    name, frames = load_image(image)
    fitted = fit_frames(frames[0], height, width)[None].to(device)
    latents = encode_frames(vae, fitted)[0, 0].cpu().numpy()
    encoded = base64.b64encode(latents.astype("<f4").tobytes()).decode()
    return FirstFrame(name=name, latents=encoded)


def latents_of(first: FirstFrame, shape: tuple[int, int, int]) -> Latents:
    """Decode the latents of a first frame, as a video of one frame.

    Args:
        first: Result of `encode_first_frame`.
        shape: Expected shape, `c h w`.

    Raises:
        UserError: If the latents are damaged or have another shape.
    """
    try:
        values = np.frombuffer(base64.b64decode(first.latents, validate=True), "<f4").copy()
        latents = torch.from_numpy(values.reshape(shape))
    except ValueError:
        latents = torch.full(shape, torch.nan)
    if not bool(latents.isfinite().all()):
        raise UserError(
            "The latents of the first frame are damaged; give the image itself with --image."
        )
    return rearrange(latents, "c h w -> 1 1 c h w")

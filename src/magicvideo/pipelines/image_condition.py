"""Images as condition."""

import base64
from pathlib import Path, PurePath
from typing import TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from magicvideo.errors import UserError
from magicvideo.media import images
from magicvideo.models.conditioning import embed_frames
from magicvideo.pipelines.request import ImageCondition
from magicvideo.shapes import Frames

Embedding: TypeAlias = Float32[np.ndarray, "e"]


@torch.no_grad()
def encode_image_condition(
    image_encoder: CLIPVisionModelWithProjection,
    image: Image.Image | str | Path,
    device: torch.device,
) -> ImageCondition:
    """Return what an image encoder keeps of an image: its CLIP embedding.

    Args:
        image_encoder: CLIP's.
        image: A file or an image.
        device: Where the encoder computes.

    Raises:
        UserError: If the file is missing or no image.
    """
    name, frames = load_image(image)
    embedding = embed_frames(image_encoder, frames.to(device))
    return to_image_condition(name, embedding[0, 0].cpu().numpy())


def to_image_condition(name: str, embedding: Embedding) -> ImageCondition:
    """Return the condition with an embedding."""
    encoded = base64.b64encode(embedding.astype("<f4").tobytes()).decode()
    return ImageCondition(name=name, embedding=encoded)


def embedding_of(condition: ImageCondition) -> Embedding:
    """Return the embedding of a condition.

    Raises:
        UserError: If its text is no embedding.
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

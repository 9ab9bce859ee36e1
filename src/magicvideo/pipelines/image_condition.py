"""Pictures as condition."""

from pathlib import Path, PurePath

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from magicvideo.media import images
from magicvideo.models.conditioning import embed_frames
from magicvideo.pipelines.request import ImageCondition
from magicvideo.shapes import Frames


@torch.no_grad()
def encode_image_condition(
    image_encoder: CLIPVisionModelWithProjection, image: Image.Image | str | Path
) -> ImageCondition:
    """Return what an image encoder keeps of a picture: its embedding.

    Raises:
        UserError: If the file is missing or no picture.
    """
    name, frames = load_image(image)
    embedding = embed_frames(image_encoder, frames.to(image_encoder.device))
    return ImageCondition.of(name, embedding[0, 0].cpu().numpy())


def load_image(image: Image.Image | str | Path) -> tuple[str, Frames]:
    """Return a picture's name and its pixels in [-1, 1], as one video of one frame.

    Raises:
        UserError: If the file is missing or no picture.
    """
    source = getattr(image, "filename", "") if isinstance(image, Image.Image) else image
    pixels = np.asarray(images.load_image(image), dtype=np.float32)
    frames = rearrange(torch.from_numpy(pixels / 127.5 - 1), "h w c -> 1 1 c h w")
    return PurePath(str(source)).name or "picture", frames

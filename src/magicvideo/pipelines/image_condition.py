"""Pictures as condition."""

from pathlib import Path, PurePath

import numpy as np
import torch
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from transformers import CLIPVisionModelWithProjection

from magicvideo.errors import UserError
from magicvideo.media.safe_image import open_limited
from magicvideo.models.conditioning import embed_frames
from magicvideo.pipelines.request import ImageCondition
from magicvideo.shapes import Frames

_MOST_PIXELS = 50_000_000  # the largest that cameras make; it takes about 2 GB to lay on white


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

    Transparent pictures are laid on white.

    Raises:
        UserError: If the file is missing or no picture.
    """
    if isinstance(image, Image.Image):
        name = PurePath(str(getattr(image, "filename", ""))).name or "picture"
        return name, _frames(image)
    try:
        with open_limited(Path(image), _MOST_PIXELS) as opened:
            return Path(image).name, _frames(opened)
    except FileNotFoundError:
        raise UserError(f"The picture {image} does not exist.") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{image} is not a picture that Pillow can read; try PNG or JPEG."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"The picture {image} cannot be read: {error}.") from None


def _frames(image: Image.Image) -> Frames:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, rgba).convert("RGB"), dtype=np.float32)
    return rearrange(torch.from_numpy(pixels / 127.5 - 1), "h w c -> 1 1 c h w")

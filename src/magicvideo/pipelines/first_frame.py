"""The picture that a video begins with: fitted to the frame, encoded, and kept in the request."""

import base64
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from magicvideo.errors import UserError
from magicvideo.models.autoencoder import Autoencoder, encode_frames
from magicvideo.pipelines.image_condition import load_image
from magicvideo.pipelines.request import FirstFrame
from magicvideo.shapes import FoldedFrames, Latents


def fit_frames(
    frames: FoldedFrames, height: int, width: int
) -> Float[Tensor, "n c fitted_height fitted_width"]:
    """Return frames scaled until they cover a size, with the centre cut out.

    Args:
        frames: Pixels in [-1, 1] of any size.
        height: Of the result.
        width: Likewise.
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
    """Return a picture as the first frame of a video.

    Args:
        vae: The model's autoencoder.
        image: A file or an image; transparent parts are white.
        height: Of the key frames, in pixels.
        width: Likewise.
        device: Where the autoencoder computes.

    Raises:
        UserError: If the file is missing or no image.
    """
    name, frames = load_image(image)
    fitted = fit_frames(frames[0], height, width)[None].to(device)
    latents = encode_frames(vae, fitted)[0, 0].cpu().numpy()
    encoded = base64.b64encode(latents.astype("<f4").tobytes()).decode()
    return FirstFrame(name=name, latents=encoded)


def latents_of(first: FirstFrame, shape: tuple[int, int, int]) -> Latents:
    """Return the latents of a first frame as a video of one frame.

    Args:
        first: As `encode_first_frame` returns it.
        shape: That they must have, `c h w`.

    Raises:
        UserError: If its text holds no latents of this shape.
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

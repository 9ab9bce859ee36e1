"""One clip to latents, embeddings and tokens, in the same bytes whatever is encoded beside it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from magicvideo.data.backgrounds import Background
from magicvideo.data.dataset import compose
from magicvideo.models.autoencoder import encode_frames
from magicvideo.models.conditioning import embed_frames, encode_text
from magicvideo.models.pretrained_encoders import FrozenEncoderPaths, FrozenEncoders

_CHUNK = 16  # frames of one pass; another number would round differently


@dataclass(frozen=True)
class EncodedClip:
    """All frames of a clip on one background, and one caption."""

    latents: Float[np.ndarray, "f c h w"]
    embeddings: Float[np.ndarray, "f e"]
    tokens: Float[np.ndarray, "l d"]

    def is_finite(self) -> bool:
        """Return whether every number is one."""
        return all(np.isfinite(array).all() for array in vars(self).values())


class ClipEncoder:
    """Passes clips through the frozen parts, one at a time and a few frames at a time.

    Args:
        frozen: The parts.
        device: Where they work.
    """

    def __init__(self, frozen: FrozenEncoders, device: torch.device) -> None:
        frozen.to(device)
        self.frozen, self.device = frozen, device

    @torch.no_grad()
    def encode(
        self, pixels: NDArray[np.uint8], background: Background | None, caption: str
    ) -> EncodedClip:
        """Return a clip's arrays.

        Args:
            pixels: All frames, `f h w c`, premultiplied RGBA or RGB.
            background: What is put behind RGBA.
            caption: Its words; what goes beyond the tokenizer's length is cut.
        """
        latents, embeddings = [], []
        for start in range(0, len(pixels), _CHUNK):
            frames = compose(pixels[start : start + _CHUNK], background)[None].to(self.device)
            latents.append(encode_frames(self.frozen.vae, frames)[0].cpu())
            embeddings.append(embed_frames(self.frozen.image_encoder, frames)[0].cpu())
        tokens = encode_text(self.frozen.text_encoder, self.frozen.tokenizer, [caption])[0]
        return EncodedClip(
            latents=torch.cat(latents).numpy(),
            embeddings=torch.cat(embeddings).numpy(),
            tokens=tokens.cpu().numpy(),
        )


@lru_cache(maxsize=1)
def open_encoder(folders: FrozenEncoderPaths, device: str, threads: int) -> ClipEncoder:
    """Return the encoder of this process, set so that the same clip gives the same bytes.

    Args:
        folders: Where the parts are.
        device: As torch names it.
        threads: Of the CPU; another number would round differently.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return ClipEncoder(folders.load(), torch.device(device))

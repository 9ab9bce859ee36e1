"""How well an autoencoder returns clips that it never saw, on backgrounds of every kind."""

import numpy as np
import torch
from jaxtyping import Float

from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import mean
from magicvideo.evaluation.metrics.psnr import psnr
from magicvideo.evaluation.prompt_sets import from_uint8, to_uint8
from magicvideo.evaluation.scores import Score
from magicvideo.models.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_frames,
    vae_scale_factor,
)
from magicvideo.shapes import Frames


@torch.no_grad()
def score_autoencoder(
    autoencoder: Autoencoder, dataset: ClipDataset, count: int, num_frames: int, seed: int
) -> Score:
    """Return the mean PSNR of reconstructed clips.

    Beside it: the clips rounded to 8 bits, the best that a file can hold, and each frame's mean
    colour, which knows nothing.

    Raises:
        UserError: If there are fewer than `count` clips, or the autoencoder cannot take their size.
    """
    size, factor = dataset.info.size, vae_scale_factor(autoencoder)
    if size % factor:
        raise UserError(
            f"The clips of {dataset.folder} are {size} pixels wide, and this model's autoencoder "
            f"needs a multiple of {factor}; prepare them with another --size."
        )
    if count > len(dataset):
        raise UserError(
            f"The protocol reconstructs {count} clips, but {dataset.folder} has {len(dataset)} in "
            "this split; prepare more data or ask for fewer."
        )
    figures = []
    for place, index in enumerate(np.random.default_rng(seed).permutation(len(dataset))[:count]):
        rng = np.random.default_rng((seed, place))
        frames = dataset.sample(int(index), rng, num_frames=num_frames).frames[None]
        figures.append(_three_figures(autoencoder, frames))
    measured, rounded, flat = np.array(figures).T
    return Score(
        name="psnr",
        network="none",
        measured=mean(measured),
        real=mean(rounded),
        chance=mean(flat),
        chance_is="the mean colour of each frame",
    )


def _three_figures(autoencoder: Autoencoder, frames: Frames) -> Float[np.ndarray, "3"]:
    code = encode_frames(autoencoder, frames)
    decoded = decode_latents(autoencoder, code)
    candidates = (
        from_uint8(to_uint8(decoded[0]))[None],
        from_uint8(to_uint8(frames[0]))[None],
        frames.mean(dim=(-2, -1), keepdim=True).expand_as(frames),
    )
    return np.array([psnr(candidate, frames).item() for candidate in candidates])

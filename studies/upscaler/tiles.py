"""A frame made in tiles against the same frame made whole: how far apart, and is there a seam?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from magicvideo.evaluation.metrics.motion import LEVELS
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.upscaler.methods import (
    LargeVideo,
    SmallVideo,
    check_upscaler,
    upscale,
)

_TILES_A_SIDE = 3  # so that there are tiles with others on all sides


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a frame that was made in tiles differs from the same frame made whole.

    Attributes:
        side: Of the small frame in pixels.
        tile: Of the tiles in pixels of the small frame, what they see of others included.
        greatest: The largest difference of any pixel, in levels of 255.
        seam: Mean absolute difference of neighbours across the borders of tiles, in levels of 255.
        whole_seam: The same of the frame that was made whole.
    """

    side: int
    tile: int
    greatest: float
    seam: float
    whole_seam: float


@torch.no_grad()
def score_tiles(
    pipeline: MagicVideoPipeline, small: SmallVideo, num_steps: int, seed: int
) -> Tiling | None:
    """Enlarge square frames whole and in three by three tiles, and compare.

    Args:
        pipeline: A model with an upscaler.
        small: What is enlarged.
        num_steps: Diffusion steps.
        seed: Of the noise.

    Returns:
        The comparison, or None where the network sees so far that tiles would be no smaller than
        the frame.

    Raises:
        UserError: If the model has no upscaler.
    """
    check_upscaler(pipeline)
    assert pipeline.upscaler is not None
    factor, multiple = pipeline.upscaler.config.factor, pipeline.upscaler.size_divisor
    side = _next_multiple(small.shape[-1], multiple)
    core = _next_multiple(-(-side // _TILES_A_SIDE), multiple)
    tile = core + 2 * _next_multiple(pipeline.upscaler.receptive_radius, multiple)
    if tile >= side:
        return None
    whole, tiled = (upscale(pipeline, small, num_steps, seed, size) for size in (side, tile))
    borders = torch.arange(factor * core, whole.shape[-1], factor * core)
    return Tiling(
        side=small.shape[-1],
        tile=tile,
        greatest=LEVELS * (tiled - whole).abs().max().item(),
        seam=_jump(tiled, borders),
        whole_seam=_jump(whole, borders),
    )


def _jump(frames: LargeVideo, borders: Tensor) -> float:
    columns = (frames[..., borders] - frames[..., borders - 1]).abs().mean()
    rows = (frames[..., borders, :] - frames[..., borders - 1, :]).abs().mean()
    return LEVELS * (columns + rows).item() / 2


def _next_multiple(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple

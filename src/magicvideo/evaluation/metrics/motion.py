"""Motion and flicker: temporal change, temporal power and the warping error."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from magicvideo.shapes import Frames

LEVELS = 127.5
"""Levels of 8-bit pixels in one unit of ours, which span 2."""


def temporal_change(frames: Frames) -> Float[Tensor, " b"]:
    """Return the mean absolute change of a pixel from frame to frame, one value per clip.

    The unit is that of the pixels (a span of 2). A still video has 0. Computed in float64.
    """
    return frames.double().diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def change_at_joints(
    video: Float[Tensor, "f rgb h w"], joints: Sequence[int]
) -> tuple[float, float]:
    """Return the temporal change at the joints of a video over that elsewhere.

    A video of several parts has no seam if its frames change at joints as they do elsewhere: both
    ratios are then about 1. A jump at the joints raises the first. A grain or a tone that differs
    between the parts, and lasts, is a jump of all pixels at once and raises the second most: it
    compares the change of the mean colour.

    Args:
        video: Pixels of one video.
        joints: Positions of the first frame of each part but the first.

    Returns:
        The ratio of the mean absolute change of a pixel, and that of the mean colour.

    Raises:
        ValueError: If `joints` is empty, has an invalid position, or has all positions.
    """
    gaps = torch.zeros(len(video) - 1, dtype=torch.bool)
    if not joints or not all(1 <= joint < len(video) for joint in joints):
        raise ValueError(f"joints={list(joints)} must be positions from 1 to {len(video) - 1}")
    gaps[[joint - 1 for joint in joints]] = True
    if bool(gaps.all()):
        raise ValueError("every frame is at a joint; there is nothing to compare with")
    steps = video.double().diff(dim=0)
    pixels = steps.abs().mean(dim=(1, 2, 3))
    colours = steps.mean(dim=(2, 3)).abs().mean(dim=1)
    return (
        (pixels[gaps].mean() / pixels[~gaps].mean()).item(),
        (colours[gaps].mean() / colours[~gaps].mean()).item(),
    )


def flicker(frames: Frames, region: Bool[Tensor, "h w"]) -> Float[Tensor, " b"]:
    """Return the temporal change inside a region that should stand still.

    Independent noise of deviation s in every pixel scores 2 s / sqrt(pi) = 1.1284 s. VBench's
    "temporal flickering" is 1 - this / 255 over whole frames in 8-bit levels.
    """
    return frames[..., region].double().diff(dim=1).abs().mean(dim=(1, 2, 3))


def temporal_power(latents: Float[Tensor, "f c h w"]) -> Float[Tensor, " frequencies"]:
    """Return the power of a clip at each temporal frequency but zero, in float64.

    Entry k - 1 belongs to k periods in the length of the clip, from slow motion to flicker. The sum
    over all entries is the mean variance of a value over time (Parseval).
    """
    frames = latents.shape[0]
    # divided by the length, a coefficient is an amplitude; entry 0, the mean over time, is left out
    spectrum = torch.fft.rfft(latents.double(), dim=0)[1:] / frames
    power = spectrum.abs().square().mean(dim=(1, 2, 3))
    # a real signal has each frequency twice, as k and -k, but for the highest of an even count
    weights = torch.full_like(power, 2.0)
    if frames % 2 == 0:
        weights[-1] = 1.0
    return power * weights


def static_mask(video: Float[Tensor, "f rgb h w"]) -> Bool[Tensor, "h w"]:
    """Return the mask of pixels that are exactly equal in all frames."""
    return (video == video[:1]).all(dim=1).all(dim=0)


def corner_mask(height: int, width: int) -> Bool[Tensor, "h w"]:
    """Return the mask of the four corners, each an eighth of the sides, where background shows."""
    rows, columns = torch.zeros(height, dtype=torch.bool), torch.zeros(width, dtype=torch.bool)
    for edge in (rows, columns):
        depth = max(1, len(edge) // 8)
        edge[:depth] = edge[len(edge) - depth :] = True
    return rows[:, None] & columns[None, :]


Video = Float[Tensor, "f 3 h w"]
Flow = Float[Tensor, "gaps 2 h w"]
"""Right and down in pixels, from each frame to the next."""

_BLOCK, _REACH = 8, 4
_TOLERANCE = 0.5  # pixels by which a way there and back may miss its start


def warping_error(video: Video, forward: Flow, backward: Flow) -> float:
    """Return the mean squared difference of each frame and the next one warped back onto it.

    Pixels that leave the frame, or whose way there and back does not end where it began, are
    hidden in one of both and do not count (Lai et al. 2018). A translation with its true flow has
    0, and so has a still video.

    Args:
        video: Pixels in [-1, 1].
        forward: Motion from each frame to the next.
        backward: Motion from each later frame to the one before it, on the grid of the later one.
    """
    here = video[:-1].double()
    warped, visible = _warp(video[1:].double(), forward)
    returned, _ = _warp(backward.double(), forward)
    misses = (forward.double() + returned).norm(dim=1, keepdim=True)
    # where nothing is hidden, forward(x) + backward(x + forward(x)) = 0
    visible = visible & (misses <= _TOLERANCE)
    if not visible.any():
        return 0.0
    errors = (here - warped).square().mean(dim=1, keepdim=True)
    return errors[visible].mean().item()


def block_flow(start: Video, goal: Video) -> Flow:
    """Return whole-pixel motion by block matching, which needs no network.

    Each block of 8 pixels goes where the sum of absolute differences is least, at most 4 pixels
    away; among equals the shortest way wins. A network or OpenCV sees finer and farther motion, so
    compare errors under one kind of flow alone.
    """
    height, width = start.shape[-2:]
    steps = sorted(
        ((x, y) for x in range(-_REACH, _REACH + 1) for y in range(-_REACH, _REACH + 1)),
        key=lambda step: (step[0] ** 2 + step[1] ** 2, step),
    )
    # blocks at the border may move out by as much: the nearest pixel continues there
    padded = F.pad(goal, (_REACH, _REACH, _REACH, _REACH), mode="replicate")
    costs = []
    for x, y in steps:
        rows, columns = (
            slice(_REACH + y, _REACH + y + height),
            slice(_REACH + x, _REACH + x + width),
        )
        difference = (padded[..., rows, columns] - start).abs().sum(dim=1, keepdim=True)
        costs.append(F.avg_pool2d(difference, _BLOCK, ceil_mode=True))
    # argmin does not promise the first of equals
    cheapest = torch.stack(costs).double()
    order = torch.arange(len(steps), dtype=torch.float64).view(-1, 1, 1, 1, 1)
    best = torch.where(cheapest == cheapest.amin(dim=0), order, len(steps)).amin(dim=0).long()
    chosen = torch.tensor(steps, dtype=torch.float32)[best[:, 0]]
    blocks = rearrange(chosen, "f rows columns xy -> f xy rows columns")
    return blocks.repeat_interleave(_BLOCK, 2).repeat_interleave(_BLOCK, 3)[..., :height, :width]


def estimated_warping_error(video: Video) -> float:
    """Return the warping error of a video under its own block flow."""
    return warping_error(
        video, block_flow(video[:-1], video[1:]), block_flow(video[1:], video[:-1])
    )


def _warp(
    maps: Float[Tensor, "gaps c h w"], flow: Flow
) -> tuple[Float[Tensor, "gaps c h w"], Bool[Tensor, "gaps 1 h w"]]:
    """Sample maps along the flow with bilinear weights; return them and what is inside."""
    height, width = maps.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = columns + flow[:, 0].double(), rows + flow[:, 1].double()
    # pixel centres, so that a whole step reads a whole pixel
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    read = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return read, inside[:, None]

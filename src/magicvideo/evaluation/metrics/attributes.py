"""Attributes read from pixels alone: the background colour, and what a synthetic scene shows."""

import re
from dataclasses import asdict

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from magicvideo.data.backgrounds import COLOURS, nearest_colour
from magicvideo.data.sources.synthetic import DIRECTIONS, SHAPES, Scene, render_frame
from magicvideo.evaluation.metrics.motion import corner_mask


def background_colour(video: Float[Tensor, "f 3 h w"]) -> str:
    """Name the plain colour nearest to the median of the video's corners over all frames.

    The median outvotes a figure that reaches into a corner or two.

    Args:
        video: Pixels in [-1, 1].
    """
    _, _, height, width = video.shape
    pixels = video[..., corner_mask(height, width)].transpose(0, 1).flatten(start_dim=1)
    return nearest_colour((pixels.median(dim=1).values + 1).mul(127.5).numpy())


_CAPTION = re.compile(r"(\w+) (\w+) moving (\w+), (\w+) background")
_CONTRAST = 60.0  # levels that tell a figure's pixel from the background, noise of codecs included

Masks = Bool[np.ndarray, "f h w"]


def parse_scene(caption: str) -> Scene | None:
    """Return the scene that a caption of the moving shapes names, or None for other captions."""
    found = _CAPTION.fullmatch(caption.strip())
    if found is None:
        return None
    colour, shape, direction, background = found.groups()
    return Scene(shape=shape, colour=colour, direction=direction, background=background)


def read_scene(video: Float[Tensor, "f 3 h w"]) -> Scene | None:
    """Return the scene that a video shows, or None where no figure stands out.

    The background is read from the corners, the figure's colour from the median of what differs
    from it, its direction from the path of its middle, and its shape by the largest overlap with
    each shape as it is drawn.

    Args:
        video: Square frames of pixels in [-1, 1].
    """
    background = background_colour(video)
    levels = (video.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    masks = np.linalg.norm(levels - np.array(COLOURS[background]), axis=-1) > _CONTRAST
    seen = masks.any(axis=(1, 2))
    if seen.sum() < 2:
        return None
    return Scene(
        shape=_shape(masks[seen]),
        colour=nearest_colour(np.median(levels[masks], axis=0)),
        direction=_direction(masks[seen]),
        background=background,
    )


def attributes_met(video: Float[Tensor, "f 3 h w"], scene: Scene) -> dict[str, bool]:
    """Tell for each attribute of a scene whether a video shows it."""
    seen = read_scene(video)
    wanted = asdict(scene)
    return {name: seen is not None and asdict(seen)[name] == wanted[name] for name in wanted}


def _direction(masks: Masks) -> str:
    middles = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    down, right = np.polyfit(np.arange(len(middles)), middles, deg=1)[0]
    return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], (right, down))))


def _shape(masks: Masks) -> str:
    centred = np.stack([_centred(mask) for mask in masks])
    size = masks.shape[-1]
    overlaps = {}
    for shape in SHAPES:
        drawn = render_frame(Scene(shape, "black", "right", "white"), 0.5, size)
        template = _centred(np.linalg.norm(drawn - 255.0, axis=-1) > _CONTRAST)
        common = (centred & template).sum(axis=(1, 2))
        overlaps[shape] = float((common / (centred | template).sum(axis=(1, 2))).mean())
    return max(overlaps, key=lambda shape: overlaps[shape])


def _centred(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Move a figure so that the middle of its bounding box is that of the picture."""
    places = np.argwhere(mask)
    middle = (places.min(axis=0) + places.max(axis=0) + 1) // 2
    shift = np.array(mask.shape) // 2 - middle
    moved: Bool[np.ndarray, "h w"] = np.roll(mask, shift, axis=(0, 1))
    return moved

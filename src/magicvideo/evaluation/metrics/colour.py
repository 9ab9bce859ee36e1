"""The background colour of a video, read by a program that knows the named colours only."""

from jaxtyping import Float
from torch import Tensor

from magicvideo.data.backgrounds import nearest_colour
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

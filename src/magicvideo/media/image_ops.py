"""One picture of a video: turned upright, and cut to its centre square."""

import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from PIL import Image


def upright(frame: VideoFrame) -> Image.Image:
    """Return a frame in RGB, turned as its file says that it is to be shown."""
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def centre_square(picture: Image.Image, size: int) -> UInt8[np.ndarray, "size size c"]:
    """Return the middle of a picture, `size` pixels a side."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    shrinks = side >= size
    resized = picture.resize(
        (size, size),
        Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    return np.asarray(resized)

"""One way to look at a clip, real or generated: the middle frames at one size."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from magicvideo.evaluation.benchmark.protocol import FramePreprocessing
from magicvideo.media.video_reader import ClipError

ClipTensor = UInt8[Tensor, "looked 3 side side"]


def preprocess_clip(
    pixels: UInt8[np.ndarray, "length h w 3"], preprocessing: FramePreprocessing
) -> ClipTensor:
    """Return the frames of a clip that a benchmark looks at, in 8 bits.

    Raises:
        ClipError: If the clip is too short.
    """
    span = (preprocessing.frames - 1) * preprocessing.stride + 1
    if len(pixels) < span:
        raise ClipError(f"has {len(pixels)} frames, and {span} are looked at")
    start = (len(pixels) - span) // 2
    chosen = pixels[start : start + span : preprocessing.stride]
    return torch.from_numpy(np.stack([_square(frame, preprocessing) for frame in chosen]))


def image_frames(frames: ClipTensor, count: int) -> UInt8[Tensor, "images 3 side side"]:
    """Return some frames, spread evenly; of an only one, the middle."""
    steps = (torch.arange(count) + 0.5) * len(frames) / count
    return frames[steps.long()]


def _square(
    frame: UInt8[np.ndarray, "h w 3"], preprocessing: FramePreprocessing
) -> UInt8[np.ndarray, "3 s s"]:
    picture = Image.fromarray(_centre(frame) if preprocessing.crop == "centre" else frame)
    if picture.size != (preprocessing.side, preprocessing.side):
        resampling = Image.Resampling[preprocessing.filter.upper()]
        picture = picture.resize((preprocessing.side, preprocessing.side), resampling)
    return np.asarray(picture).transpose(2, 0, 1)


def _centre(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "side side 3"]:
    height, width = frame.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return frame[top : top + side, left : left + side]

"""What generation returns: frames, together with the request that makes them again."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.generate.request import Request
from magicvideo.generate.write import write_video
from magicvideo.shapes import Frames


@dataclass(frozen=True)
class Video:
    """A finished video.

    Attributes:
        frames: Pixels in [-1, 1], on the CPU.
        request: What it was made from.
    """

    frames: Float[Tensor, "f 3 h w"]
    request: Request

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the video; the suffix tells the format, a name without one is a folder of PNG.

        Raises:
            UserError: If the path cannot be written, or exists and `overwrite` is False.
        """
        write_video(self.frames, self.request, Path(path), overwrite=overwrite)


@dataclass(frozen=True)
class VideoOutput:
    """The videos of one call, in the order of the prompts."""

    videos: list[Video]

    @property
    def frames(self) -> Frames:
        """Return the frames of all videos, pixels in [-1, 1]."""
        return torch.stack([video.frames for video in self.videos])

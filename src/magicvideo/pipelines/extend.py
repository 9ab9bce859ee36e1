"""Videos that are continued: their last key frames, and what their files record."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from magicvideo.errors import UserError
from magicvideo.media.video_io import Frame, VideoStream, open_video_stream
from magicvideo.pipelines.capabilities import ModelCapabilities
from magicvideo.pipelines.image_condition import fit_frames
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.video import read_request
from magicvideo.shapes import Frames, Latents

_SLOWEST, _FASTEST = 1.0, 60.0  # key frames a second, as in `GenerationSettings.fps`


@dataclass(frozen=True)
class ContinuedVideo:
    """A video that is continued.

    Attributes:
        path: Its file.
        keys: Latents of its last key frames, which the denoiser is given, `1 k c h w`.
        num_frames: How many frames the file has.
        height: Of the result, in pixels, which its own frames are fitted to.
        width: Likewise.
    """

    path: Path
    keys: Latents
    num_frames: int
    height: int
    width: int

    def frames(self) -> Iterator[Frame]:
        """Yield its own frames at the size of the result, read from the file one by one."""
        for frame in open_video_stream(self.path).frames:
            yield fit_frames(frame[None], self.height, self.width)[0]


@dataclass(frozen=True)
class Extension:
    """How a video is continued.

    Attributes:
        settings: Its frame rate, and the number of key frames, given ones included.
        num_given: Key frames at its end that the denoiser is given.
        stride: Frames from one key frame to the next.
    """

    settings: GenerationSettings
    num_given: int
    stride: int


def plan_extension(
    model: ModelCapabilities,
    clip: VideoStream,
    settings: GenerationSettings,
    seconds: float | None,
) -> Extension:
    """Return how a model continues a video.

    New frames have the rate of the video, so key frames are as many of its frames apart as the
    model's interpolation makes of a gap.

    Args:
        model: What the model can do.
        clip: The video.
        settings: What the caller chose; `num_frames` is the number of new key frames.
        seconds: Length of what is added, in place of that number.

    Raises:
        UserError: If the model has not learned to continue frames, or a value is out of range.
    """
    if not model.max_given_frames:
        raise UserError(
            "This model was trained without given frames, so it cannot extend a video; choose "
            "another model."
        )
    stages = settings.stages or model.defaults.stages or model.stages
    stride = 1 + (model.num_inserted if "interpolation" in stages else 0)
    fps = clip.fps / stride
    if settings.fps is not None and abs(settings.fps - fps) > 1e-3 * fps:
        raise UserError(
            f"The frame rate is {settings.fps:g}, and key frames of the video come at {fps:g} a "
            "second; leave the frame rate out."
        )
    if not _SLOWEST <= fps <= _FASTEST:
        raise UserError(
            f"The video has {clip.fps:g} frames a second; with these stages it must have "
            f"{_SLOWEST * stride:g} to {_FASTEST * stride:g}."
        )
    settings = replace(settings, fps=fps)
    if seconds is not None:
        settings = model.with_length(settings, seconds, is_added=True)
    most = min(model.max_given_frames, model.max_frames - 1)
    wanted = min(settings.overlap or model.default_overlap, most)
    num_given = min(wanted, (clip.num_frames - 1) // stride + 1)
    new = settings.num_frames or model.max_frames - num_given
    whole = num_given + new
    overlap = settings.overlap if whole > model.max_frames else None
    return Extension(replace(settings, num_frames=whole, overlap=overlap), num_given, stride)


def read_last_key_frames(clip: VideoStream, plan: Extension, height: int, width: int) -> Frames:
    """Return the key frames at the end of a video, with its last frame as the last of them.

    Args:
        clip: The video; its frames are read to the end.
        plan: How many there are and how far apart.
        height: That they are fitted to.
        width: Likewise.
    """
    end = deque(clip.frames, maxlen=(plan.num_given - 1) * plan.stride + 1)
    return fit_frames(torch.stack([*end][:: plan.stride]), height, width)[None]


def read_recorded(path: Path) -> Request | None:
    """Return the request that made a video file, or None if the file holds none."""
    try:
        return read_request(path)
    except UserError:
        return None


def read_recorded_prompt(path: Path) -> str:
    """Return the prompt that a video's file records.

    Raises:
        UserError: If it records none.
    """
    recorded = read_recorded(path)
    if recorded is None or not recorded.prompt.strip():
        raise UserError(f"{path} records no prompt; say what the video should show.")
    return recorded.prompt


def read_recorded_seed(path: Path) -> int | None:
    """Return the seed that a video's file records, or None.

    Super-resolution has the same noise under the same seed, so new frames have the grain of those
    before them.
    """
    recorded = read_recorded(path)
    return None if recorded is None else recorded.seed

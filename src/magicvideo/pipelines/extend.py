"""Extension of existing videos: their last key frames, and the request in their files."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from magicvideo.errors import UserError
from magicvideo.media.video_io import Frame, VideoStream, open_video_stream
from magicvideo.media.video_reader import VideoInfo
from magicvideo.pipelines.capabilities import ModelCapabilities
from magicvideo.pipelines.image_condition import fit_frames
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.video import read_request
from magicvideo.shapes import Frames, Latents

_SLOWEST, _FASTEST = 1.0, 60.0  # key frames per second, as in `GenerationSettings.fps`


@dataclass(frozen=True)
class ContinuedVideo:
    """A video to continue.

    Attributes:
        path: The video file.
        keys: Latents of its last key frames, the given frames of the denoiser, `1 k c h w`.
        num_frames: Number of frames in the file.
        height: Height of the result in pixels; frames of the file are resized to it.
        width: Width of the result in pixels.
    """

    path: Path
    keys: Latents
    num_frames: int
    height: int
    width: int

    def frames(self) -> Iterator[Frame]:
        """Read its frames one by one, resized to the result."""
        for frame in open_video_stream(self.path).frames:
            yield fit_frames(frame[None], self.height, self.width)[0]


@dataclass(frozen=True)
class Extension:
    """How to continue a video.

    Attributes:
        settings: Settings with its frame rate and the number of key frames, including given ones.
        num_given: Number of given key frames, taken from its end.
        stride: Distance of two key frames in frames.
    """

    settings: GenerationSettings
    num_given: int
    stride: int


def plan_extension(
    model: ModelCapabilities,
    clip: VideoInfo | VideoStream,
    settings: GenerationSettings,
    seconds: float | None,
) -> Extension:
    """Plan how a model continues a video.

    New frames have the frame rate of the video, so the distance of its key frames is that of the
    model's key frames after interpolation.

    Args:
        model: Capabilities of the model.
        clip: The video, or its size, frame rate and number of frames.
        settings: The caller's settings; `num_frames` is the number of new key frames.
        seconds: Length of the added part, instead of that number.

    Raises:
        UserError: If the model was trained without given frames, or a value is out of range.
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
            f"The frame rate is {settings.fps:g}, but the video has {fps:g} key frames per second; "
            "omit the frame rate."
        )
    if not _SLOWEST <= fps <= _FASTEST:
        raise UserError(
            f"The video has {clip.fps:g} frames per second; with these stages it must have "
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
    """Read the key frames at the end of a video; the last one is its last frame.

    Args:
        clip: The video; all its frames are read.
        plan: Number and distance of the key frames.
        height: Height to resize to, in pixels.
        width: Width to resize to, in pixels.
    """
    end = deque(clip.frames, maxlen=(plan.num_given - 1) * plan.stride + 1)
    return fit_frames(torch.stack([*end][:: plan.stride]), height, width)[None]


def read_recorded(path: Path) -> Request | None:
    """Read the request of a video file; None if it has none."""
    try:
        return read_request(path)
    except UserError:
        return None


def read_recorded_prompt(path: Path) -> str:
    """Read the prompt of a video file.

    Raises:
        UserError: If it has none.
    """
    recorded = read_recorded(path)
    if recorded is None or not recorded.prompt.strip():
        raise UserError(f"{path} contains no prompt; describe what the video should show.")
    return recorded.prompt


def read_recorded_seed(path: Path) -> int | None:
    """Read the seed of a video file; None if it has none.

    With the same seed, super-resolution uses the same noise, so new frames have the same texture as
    the existing ones.
    """
    recorded = read_recorded(path)
    return None if recorded is None else recorded.seed

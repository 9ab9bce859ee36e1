"""The videos of a study: made or read once, all encoded alike, with nothing that tells a side."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

from magicvideo.media.video_io import to_pixels, write_pixels
from magicvideo.media.video_stream import Footage, open_footage
from magicvideo.pipelines.request import resolve_seeds
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.human_study.sources import match_videos
from studies.human_study.study import Side, Study

Clip: TypeAlias = tuple[Iterable[UInt8[np.ndarray, "h w 3"]], float]
"""The frames of a video, and its frames a second."""

_PLEASANT_SIDE = 256  # pixels, which files of `generate` have by default


def missing_pairs(study: Study, folder: Path, side: Side) -> list[int]:
    """Return the pairs whose video of a side is not made yet."""
    videos = study.videos(folder)
    return [
        pair
        for pair in range(len(study.prompts))
        if not videos[study.video_name(side, pair)].exists()
    ]


def generated_clips(
    study: Study, pipeline: MagicVideoPipeline, pairs: Sequence[int]
) -> Iterator[Clip]:
    """Yield the video of each of some pairs, made by a model with the seed of the pair."""
    prompts = list(study.prompts)
    requests = pipeline.build_requests(
        prompts, resolve_seeds(study.seed, len(prompts)), study.settings
    )
    for request in (requests[pair] for pair in pairs):
        yield to_pixels(pipeline.generate(request).frames, request.output_scale), request.video_fps


def finished_clips(study: Study, folder: Path, pairs: Sequence[int]) -> Iterator[Clip]:
    """Yield the finished video of each of some pairs.

    Raises:
        UserError: If a video cannot be read.
    """
    paths = match_videos(folder, list(study.prompts))
    for pair in pairs:
        footage = open_footage(paths[pair])
        yield _enlarged(footage), footage.fps


def write_clips(
    study: Study, folder: Path, side: Side, pairs: Sequence[int], clips: Iterable[Clip]
) -> Iterator[int]:
    """Write the videos of some pairs of a side, and yield how many are there after each.

    All are encoded alike, and carry no text: that of a finished video names its model.
    """
    videos = study.videos(folder)
    for done, (pair, (pixels, fps)) in enumerate(zip(pairs, clips, strict=True), start=1):
        write_pixels(pixels, fps, "", videos[study.video_name(side, pair)])
        yield done


def _enlarged(footage: Footage) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    factor = _enlargement(footage.height, footage.width)
    for frame in footage.frames:
        yield to_pixels(frame[None], factor)[0]


def _enlargement(height: int, width: int) -> int:
    """Return the factor for frames of a user's, whose sides must become even for MP4."""
    factor = max(1, _PLEASANT_SIDE // min(height, width))
    return factor + (factor * height % 2 or factor * width % 2)

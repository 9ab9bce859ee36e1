"""Generated videos kept in a folder, so that a stopped evaluation continues.

Several processes can share the work: each generates its shard.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from magicvideo.atomic_io import atomic_file
from magicvideo.data.workers import Rank
from magicvideo.evaluation.prompt_sets import from_uint8, to_uint8
from magicvideo.pipelines.request import Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

# what changes the file or the last bit, but not the video
_IMMATERIAL = ("output_scale", "threads")


def generate_cached(
    pipeline: MagicVideoPipeline,
    requests: list[Request],
    folder: Path,
    on_video: Callable[[int], None],
) -> Iterator[Float[Tensor, "f 3 h w"]]:
    """Yield the video of each request, in 8 bits, from the cache or generated now.

    Args:
        pipeline: The model.
        requests: One for each video.
        folder: The cache; the name of a file is a hash of the request and the model.
        on_video: Called with the count of videos that are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for done, request in enumerate(requests, start=1):
        path = _kept_path(request, folder)
        pixels = _read(path, request.video_frames)
        if pixels is None:
            pixels = to_uint8(pipeline.generate(request).frames).numpy()
            with atomic_file(path) as partial:
                np.save(partial, pixels)
        yield from_uint8(torch.from_numpy(pixels))
        on_video(done)


def generate_shard(
    pipeline: MagicVideoPipeline,
    requests: list[Request],
    folder: Path,
    rank: Rank,
    on_video: Callable[[int, int], None],
) -> int:
    """Generate the missing videos of one process; return how many of all are cached then.

    Args:
        pipeline: The model.
        requests: Of all processes.
        folder: The cache of all processes.
        rank: Of this process, and how many there are.
        on_video: Called with the count of its videos that are done, and their number.
    """
    own = requests[rank.rank :: rank.world_size]
    for _ in generate_cached(pipeline, own, folder, lambda done: on_video(done, len(own))):
        pass
    return sum(_kept_path(request, folder).is_file() for request in requests)


def request_key(request: Request) -> str:
    """Return 32 digits that name a video: a hash of the model's hash and the whole request."""
    material = {name: value for name, value in asdict(request).items() if name not in _IMMATERIAL}
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:32]


def _kept_path(request: Request, folder: Path) -> Path:
    return folder / f"{request_key(request)}.npy"


def _read(path: Path, num_frames: int) -> NDArray[np.uint8] | None:
    """Return a cached video, or None if it is missing or damaged."""
    try:
        pixels: NDArray[np.uint8] = np.load(path)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    whole = pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == num_frames
    return pixels if whole else None

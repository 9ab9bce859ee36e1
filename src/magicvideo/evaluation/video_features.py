"""What is read off every video, real or generated, by the same code in the same way."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.colour import background_colour
from magicvideo.evaluation.metrics.motion import corner_mask, flicker, temporal_change


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """One entry a video."""

    features: Float[np.ndarray, "n d"]
    """The judge's unit features."""
    tones: list[str]
    colours: list[str]
    change: Float[np.ndarray, " n"]
    flicker: Float[np.ndarray, " n"]


def extract_features(judge: Judge, videos: Iterable[Float[Tensor, "f 3 h w"]]) -> VideoFeatures:
    """Read everything off each video, one at a time, so that memory does not grow with them."""
    features, tones, colours, changes, flickers = [], [], [], [], []
    for video in videos:
        frames = video[None]
        features.append(judge.embed_videos(frames).double().numpy())
        tones += judge.read_tones(frames)
        colours.append(background_colour(video))
        changes.append(temporal_change(frames).item())
        flickers.append(flicker(frames, corner_mask(*video.shape[-2:])).item())
    return VideoFeatures(
        features=np.concatenate(features),
        tones=tones,
        colours=colours,
        change=np.array(changes),
        flicker=np.array(flickers),
    )

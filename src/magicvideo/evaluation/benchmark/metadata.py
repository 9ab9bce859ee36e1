"""What scores depend on and no protocol chooses, as results state it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from magicvideo.evaluation.benchmark.features import Captioned, ClipFeatures, FeatureNetworks
from magicvideo.evaluation.confidence_intervals import CONFIDENCE, RESAMPLES
from magicvideo.evaluation.metrics.fid_infinity import POINTS
from magicvideo.evaluation.metrics.kernel import KID

EXTRAPOLATION = {"points": POINTS, "smallest_subset": "half"}
SEEDS = "that of prompt k is k, from 0"
"""Of the noise of generated videos."""
METHOD = {
    "frames": "the middle ones of each clip; of these, spread evenly, those for FID and its kin",
    "resizing": "by Pillow in 8 bits; none where a frame has the size already",
    "similarity": "raw cosine, mean over the frames, then over the videos",
    "inception_splits": 1,
    "kernel": {
        **asdict(KID),
        "gamma": "1 / width",
        "unbiased": True,
        "left_out": "pairs within one clip, such as of its frames for KID",
        "subsets": "none: all clips at once",
    },
    "extrapolation": EXTRAPOLATION,
    "intervals": {
        "confidence": CONFIDENCE,
        "shares": "Wilson",
        "means": {"kind": "percentile bootstrap", "resamples": RESAMPLES},
        "distances": "bootstrap around the measured value; of kernel distances to first order",
    },
}
"""The same for every benchmark of this version of the package."""


@dataclass(frozen=True, kw_only=True)
class GeneratedSet:
    """Generated videos of one maker, and what is known of them before they are looked at."""

    maker: str
    clips: Iterator[Captioned]
    prompts: list[str]
    rates: list[float]
    """Frames a second of each; whole when the last clip has been read."""
    about: dict[str, Any]
    caveats: list[str]


def network_metadata(networks: FeatureNetworks, looks: ClipFeatures) -> dict[str, dict[str, str]]:
    """Return of each network that looked its name, which features were taken, and of what size.

    Args:
        networks: All that could look.
        looks: What they saw, for the width of the features.
    """
    judge, found = networks.judge, {}
    if networks.i3d is None or networks.clip is None:
        width = judge.config.feature_width
        found["judge"] = _facts(networks.judge.name, width, judge.feature_layer, judge.resizing)
    for role, network, features in (
        ("I3D", networks.i3d, looks.videos),
        ("Inception", networks.inception, looks.images),
        ("CLIP", networks.clip, looks.clip_images),
    ):
        if network is not None and features is not None:
            width = features.shape[-1]
            found[role] = _facts(
                network.located.name, width, network.feature_layer, network.resizing
            )
            found[role]["sha256"] = network.located.sha256
    return found


def clip_metadata(
    looks: ClipFeatures, rates: list[float], classes: dict[str, int]
) -> dict[str, Any]:
    """Return what is known of a set of clips: count, clips a class, frames a second, pixels."""
    return {
        "count": len(rates),
        "classes": classes,
        "fps": rate_metadata(rates),
        "pixels_sha256": looks.sha256,
    }


def rate_metadata(rates: Sequence[float]) -> dict[str, float]:
    """Return the least, the mean and the most frames a second."""
    return {"least": min(rates), "mean": float(np.mean(rates)), "most": max(rates)}


def _facts(name: str, width: int, layer: str, resizing: str) -> dict[str, str]:
    return {"name": name, "features": f"{width} {layer}", "resizing": resizing}

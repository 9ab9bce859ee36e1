"""Features of clips for a benchmark: preprocessing, extraction, and the metadata of both."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from magicvideo.errors import ClipError, UserError
from magicvideo.evaluation.benchmark.protocol import FramePreprocessing
from magicvideo.evaluation.confidence_intervals import CONFIDENCE, RESAMPLES
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.attributes import attributes_met, parse_scene
from magicvideo.evaluation.metrics.distribution import KID, POINTS
from magicvideo.evaluation.metrics.motion import LEVELS, estimated_warping_error, temporal_change
from magicvideo.evaluation.metrics.text_alignment import caption_similarity
from magicvideo.evaluation.networks.clip import CLIPEncoder
from magicvideo.evaluation.networks.extractors import I3D, Inception

ClipTensor = UInt8[Tensor, "looked 3 side side"]


def preprocess_clip(
    pixels: UInt8[np.ndarray, "length h w 3"], preprocessing: FramePreprocessing
) -> ClipTensor:
    """Return the frames of a clip that a benchmark scores, in 8 bits.

    Raises:
        ClipError: If the clip is too short.
    """
    span = (preprocessing.frames - 1) * preprocessing.stride + 1
    if len(pixels) < span:
        raise ClipError(f"has {len(pixels)} frames, and {span} are needed")
    start = (len(pixels) - span) // 2
    chosen = pixels[start : start + span : preprocessing.stride]
    return torch.from_numpy(np.stack([_square(frame, preprocessing) for frame in chosen]))


def image_frames(frames: ClipTensor, count: int) -> UInt8[Tensor, "images 3 side side"]:
    """Return evenly spaced frames; for a count of one, the middle frame."""
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


Captioned: TypeAlias = tuple[ClipTensor, str]
"""The frames of a clip, and what it is compared with."""


@dataclass(frozen=True, kw_only=True)
class FeatureNetworks:
    """The feature networks. The judge stands in for a network that is not given.

    Attributes:
        judge: A video-text matcher.
        i3d: Of FVD and KVD, or None.
        inception: Of FID, KID and the Inception Score, or None.
        clip: Of CLIPSIM and CLIP-FID, or None.
    """

    judge: Judge
    i3d: I3D | None = None
    inception: Inception | None = None
    clip: CLIPEncoder | None = None

    def video_features(self, video: Float[Tensor, "f 3 h w"]) -> Float[np.ndarray, " d"]:
        """Return the features of one clip, by I3D or else by the judge."""
        if self.i3d is not None:
            return self.i3d.features(video)
        return self.judge.embed_videos(video[None])[0].numpy()

    def similarity(self, video: Float[Tensor, "f 3 h w"], caption: str) -> float:
        """Return how well a clip fits a caption, by CLIP or else by the judge."""
        if self.clip is not None:
            return caption_similarity(
                self.clip.embed_frames(video), self.clip.embed_caption(caption)
            )
        seen = self.judge.embed_videos(video[None]).numpy()
        return caption_similarity(seen, self.judge.embed_captions([caption])[0].numpy())


@dataclass(frozen=True, kw_only=True)
class ClipFeatures:
    """Features of clips, one entry per clip; None without a network for it."""

    videos: Float[np.ndarray, "n d"]
    similarity: Float[np.ndarray, " n"]
    change: Float[np.ndarray, " n"]
    """In levels of 255 from frame to frame."""
    warping: Float[np.ndarray, " n"]
    """Mean squared, of pixels from 0 to 1."""
    images: Float[np.ndarray, "n k features"] | None
    probabilities: Float[np.ndarray, "n k classes"] | None
    clip_images: Float[np.ndarray, "n k embedding"] | None
    attributes: list[dict[str, bool]]
    """Of clips whose caption is one of the moving shapes."""
    sha256: str
    """Of all pixels that were scored."""


def extract_features(
    networks: FeatureNetworks, clips: Iterable[Captioned], num_images: int
) -> ClipFeatures:
    """Extract all features of each clip, one at a time, so that memory holds only features.

    Args:
        networks: The feature networks.
        clips: Frames in 8 bits and a caption.
        num_images: Frames of each clip for the networks of single frames.

    Raises:
        UserError: If there are no clips.
    """
    digest = hashlib.sha256()
    rows: dict[str, list[np.ndarray | float]] = {}
    attributes = []
    for cut, caption in clips:
        digest.update(cut.numpy().tobytes())
        video = cut.float() / 127.5 - 1
        for name, value in _read(networks, cut, video, caption, num_images).items():
            rows.setdefault(name, []).append(value)
        if scene := parse_scene(caption):
            attributes.append(attributes_met(video, scene))
    if not rows:
        raise UserError("No clip could be read; name a folder with whole videos.")
    found = {name: np.stack(values) for name, values in rows.items()}
    return ClipFeatures(
        videos=found["videos"],
        similarity=found["similarity"],
        change=found["change"],
        warping=found["warping"],
        images=found.get("images"),
        probabilities=found.get("probabilities"),
        clip_images=found.get("clip_images"),
        attributes=attributes,
        sha256=digest.hexdigest(),
    )


def _read(
    networks: FeatureNetworks,
    cut: ClipTensor,
    video: Float[Tensor, "f 3 h w"],
    caption: str,
    num_images: int,
) -> dict[str, np.ndarray | float]:
    found: dict[str, np.ndarray | float] = {
        "videos": networks.video_features(video),
        "similarity": networks.similarity(video, caption),
        "change": LEVELS * temporal_change(video[None]).item(),
        "warping": estimated_warping_error(video) / 4,
    }
    images = image_frames(cut, num_images)
    if networks.inception is not None:
        found["images"], found["probabilities"] = networks.inception.extract(images)
    if networks.clip is not None:
        found["clip_images"] = networks.clip.embed_frames(images.to(torch.float32) / 127.5 - 1)
    return found


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
    """Generated videos of one model, with their metadata."""

    maker: str
    clips: Iterator[Captioned]
    prompts: list[str]
    rates: list[float]
    """Frames per second of each; whole when the last clip has been read."""
    about: dict[str, Any]
    caveats: list[str]


def network_metadata(networks: FeatureNetworks, looks: ClipFeatures) -> dict[str, dict[str, str]]:
    """Return for each network its name, which features were taken, and their size.

    Args:
        networks: The feature networks.
        looks: Their features, for the width.
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
    """Return the metadata of a set of clips: count, clips per class, frame rates, pixels."""
    return {
        "count": len(rates),
        "classes": classes,
        "fps": rate_metadata(rates),
        "pixels_sha256": looks.sha256,
    }


def rate_metadata(rates: Sequence[float]) -> dict[str, float]:
    """Return the least, mean and greatest frame rate."""
    return {"least": min(rates), "mean": float(np.mean(rates)), "most": max(rates)}


def _facts(name: str, width: int, layer: str, resizing: str) -> dict[str, str]:
    return {"name": name, "features": f"{width} {layer}", "resizing": resizing}

"""What is read off every clip, real or generated, by the same networks in the same way."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.preprocessing import ClipTensor, image_frames
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.attributes import attributes_met, parse_scene
from magicvideo.evaluation.metrics.clipsim import caption_similarity
from magicvideo.evaluation.metrics.motion import LEVELS, temporal_change
from magicvideo.evaluation.metrics.warping import estimated_warping_error
from magicvideo.evaluation.networks.clip import CLIPEncoder
from magicvideo.evaluation.networks.extractors import I3D, Inception

Captioned: TypeAlias = tuple[ClipTensor, str]
"""The frames of a clip, and what it is compared with."""


@dataclass(frozen=True, kw_only=True)
class FeatureNetworks:
    """What looks at the clips. Where a network of the papers is absent, the judge looks.

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
    """One entry a clip; what no network was there for is None."""

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
    """Of all pixels that were looked at."""


def extract_features(
    networks: FeatureNetworks, clips: Iterable[Captioned], num_images: int
) -> ClipFeatures:
    """Read everything off each clip, one at a time, so that memory holds features alone.

    Args:
        networks: What looks.
        clips: Frames in 8 bits and a caption.
        num_images: Frames of each clip that the networks of single frames look at.

    Raises:
        UserError: If there is no clip.
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
        raise UserError("Not one clip could be looked at; name a folder with whole videos.")
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

"""Scores of generated clips with intervals, next to those of real clips."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from magicvideo.evaluation.benchmark.features import ClipFeatures, FeatureNetworks
from magicvideo.evaluation.benchmark.protocol import Statistics
from magicvideo.evaluation.confidence_intervals import (
    Estimate,
    centred_bootstrap,
    first_order_bootstrap,
    mean,
    proportion,
)
from magicvideo.evaluation.metrics.distribution import (
    extrapolate_to_infinity,
    fit_gaussian,
    frechet_distance,
    inception_score,
    inside_manifold,
    kernel_distance,
)
from magicvideo.evaluation.networks.extractors import I3D, I3D_FEATURES, INCEPTION_FEATURES

Column: TypeAlias = Literal["fid", "clip_fid", "fvd", "clipsim"]
"""A column of the published rows that a score may stand in."""
Clips: TypeAlias = Float[np.ndarray, "n k d"]
OtherClips: TypeAlias = Float[np.ndarray, "m k d"]


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """One row of a result.

    Attributes:
        name: Of the metric; a published name only with the published network.
        network: Whose features it is computed on.
        measured: Of the generated clips.
        real: Of real clips: of two halves for a distance, of all for other metrics.
        extrapolated: A distance with infinite samples, if asked for.
        column: The column of published results that it belongs to, if any.
        digits: Decimals to show.
    """

    name: str
    network: str
    measured: Estimate
    real: Estimate
    extrapolated: float | None = None
    column: Column | None = None
    digits: int = 2


class MetricNames(NamedTuple):
    """Names of the distances of one kind of features, and the published column of the first."""

    frechet: str
    kernel: str
    column: Column | None


def video_metric_names(i3d: I3D | None, width: int) -> MetricNames:
    """Return the names that papers gave to 400 logits of I3D, plain ones for other features."""
    if i3d is not None and width == I3D_FEATURES:
        return MetricNames("FVD", "KVD", "fvd")
    return MetricNames("Frechet distance, videos", "kernel distance, videos", None)


def frame_metric_names(width: int) -> MetricNames:
    """Return the names that papers gave to 2048 features of Inception, plain ones for others."""
    if width == INCEPTION_FEATURES:
        return MetricNames("FID", "KID", "fid")
    return MetricNames("Frechet distance, frames", "kernel distance, frames", None)


def score(
    networks: FeatureNetworks, ours: ClipFeatures, real: ClipFeatures, statistics: Statistics
) -> list[MetricResult]:
    """Return all scores that the given networks allow.

    Raises:
        UserError: If there are too few clips for a score.
    """
    return [
        *_video_scores(networks, ours, real, statistics),
        *_image_scores(networks, ours, real, statistics),
        *_caption_scores(networks, ours, real, statistics.seed),
        *_pixel_scores(ours, real, statistics.seed),
    ]


def _video_scores(
    networks: FeatureNetworks, ours: ClipFeatures, real: ClipFeatures, statistics: Statistics
) -> list[MetricResult]:
    width = ours.videos.shape[1]
    if networks.i3d is not None:
        network = f"{networks.i3d.located.name}, {width} {networks.i3d.feature_layer}"
    else:
        network = f"{networks.judge.name}, {width} {networks.judge.feature_layer}"
    names = video_metric_names(networks.i3d, width)
    pair = _single(ours.videos), _single(real.videos)
    first, second = _halves(len(real.videos), statistics.seed)
    inside = partial(inside_manifold, neighbours=statistics.neighbours)
    return [
        _frechet(names.frechet, network, *pair, statistics, names.column),
        _kernel(names.kernel, network, *pair, statistics),
        MetricResult(
            name="precision, videos",
            network=network,
            measured=proportion(inside(ours.videos, real.videos)),
            real=proportion(inside(real.videos[first], real.videos[second])),
        ),
        MetricResult(
            name="recall, videos",
            network=network,
            measured=proportion(inside(real.videos, ours.videos)),
            real=proportion(inside(real.videos[second], real.videos[first])),
        ),
    ]


def _image_scores(
    networks: FeatureNetworks, ours: ClipFeatures, real: ClipFeatures, statistics: Statistics
) -> list[MetricResult]:
    figures = []
    if networks.inception is not None:
        assert ours.images is not None
        assert real.images is not None
        assert ours.probabilities is not None
        assert real.probabilities is not None
        width = ours.images.shape[2]
        network = f"{networks.inception.located.name}, {width} {networks.inception.feature_layer}"
        names = frame_metric_names(width)
        figures += [
            _frechet(names.frechet, network, ours.images, real.images, statistics, names.column),
            _kernel(names.kernel, network, ours.images, real.images, statistics),
            _inception(network, ours.probabilities, real.probabilities, statistics),
        ]
    if networks.clip is not None:
        assert ours.clip_images is not None
        assert real.clip_images is not None
        theirs = networks.clip.is_vit_b_32
        name = "CLIP-FID" if theirs else "Frechet distance, CLIP's frames"
        width = ours.clip_images.shape[2]
        network = f"{networks.clip.located.name}, {width} {networks.clip.feature_layer}"
        column: Column | None = "clip_fid" if theirs else None
        figures.append(
            _frechet(name, network, ours.clip_images, real.clip_images, statistics, column)
        )
    return figures


def _caption_scores(
    networks: FeatureNetworks, ours: ClipFeatures, real: ClipFeatures, seed: int
) -> list[MetricResult]:
    is_theirs = networks.clip is not None and networks.clip.is_vit_b_32
    return [
        MetricResult(
            name="CLIPSIM" if is_theirs else "cosine with the caption",
            network=networks.clip.located.name if networks.clip else networks.judge.name,
            measured=mean(ours.similarity.astype(np.float64), seed),
            real=mean(real.similarity.astype(np.float64), seed),
            column="clipsim" if is_theirs else None,
            digits=4,
        )
    ]


def _pixel_scores(ours: ClipFeatures, real: ClipFeatures, seed: int) -> list[MetricResult]:
    figures = [
        MetricResult(
            name="temporal change, levels",
            network="none",
            measured=mean(ours.change, seed),
            real=mean(real.change, seed),
        ),
        MetricResult(
            name="warping error, block flow",
            network="none",
            measured=mean(ours.warping, seed),
            real=mean(real.warping, seed),
            digits=5,
        ),
    ]
    if ours.attributes and real.attributes:
        for name in ours.attributes[0]:
            pair = [np.array([met[name] for met in side.attributes]) for side in (ours, real)]
            figures.append(_shown(f"{name} as asked", *map(proportion, pair)))
        both = [np.array([all(met.values()) for met in x.attributes]) for x in (ours, real)]
        figures.append(_shown("all attributes as asked", *map(proportion, both)))
    return figures


def _shown(name: str, measured: Estimate, real: Estimate) -> MetricResult:
    return MetricResult(name=name, network="none", measured=measured, real=real)


def _frechet(
    name: str,
    network: str,
    ours: Clips,
    real: OtherClips,
    statistics: Statistics,
    column: Column | None = None,
) -> MetricResult:
    def distance(first: np.ndarray, second: np.ndarray) -> float:
        pair = (
            fit_gaussian(_rows(side), statistics.covariance_divisor) for side in (first, second)
        )
        return frechet_distance(*pair)

    def of_places(first: np.ndarray, second: np.ndarray) -> float:
        return distance(ours[first], real[second])

    halves, seed = _halves(len(real), statistics.seed), statistics.seed
    return MetricResult(
        name=name,
        network=network,
        measured=centred_bootstrap(of_places, len(ours), len(real), statistics.resamples, seed),
        real=Estimate(distance(*(real[half] for half in halves)), len(halves[0])),
        extrapolated=(
            extrapolate_to_infinity(of_places, len(ours), len(real), seed)
            if statistics.extrapolate
            else None
        ),
        column=column,
    )


def _kernel(
    name: str, network: str, ours: Clips, real: OtherClips, statistics: Statistics
) -> MetricResult:
    frames = ours.shape[1]
    found = kernel_distance(_rows(ours), _rows(real), group=frames)
    # frames of a clip are not independent samples, so clips are resampled
    first = found.first.reshape(len(ours), -1).mean(axis=1)
    second = found.second.reshape(len(real), -1).mean(axis=1)
    half, other = _halves(len(real), statistics.seed)
    floor = kernel_distance(_rows(real[half]), _rows(real[other]), group=frames)
    return MetricResult(
        name=name,
        network=network,
        measured=first_order_bootstrap(
            found.value, first, second, statistics.resamples, statistics.seed
        ),
        real=Estimate(floor.value, len(half)),
        digits=4,
    )


def _inception(network: str, ours: Clips, real: OtherClips, statistics: Statistics) -> MetricResult:
    def of_places(chosen: np.ndarray, _: np.ndarray) -> float:
        return inception_score(_rows(ours[chosen]))

    return MetricResult(
        name="Inception Score, frames",
        network=network,
        measured=centred_bootstrap(of_places, len(ours), 1, statistics.resamples, statistics.seed),
        real=Estimate(inception_score(_rows(real)), len(real)),
    )


def _rows(clips: np.ndarray) -> Float[np.ndarray, "rows d"]:
    rows: Float[np.ndarray, "rows d"] = clips.reshape(-1, clips.shape[-1])
    return rows


def _single(features: Float[np.ndarray, "n d"]) -> Clips:
    clips: Clips = features[:, None]
    return clips


def _halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of two halves of the real clips."""
    places = np.random.default_rng(seed).permutation(count)
    return places[: count // 2], places[count // 2 :]

"""Scores of generated videos, each next to those of real clips and of chance."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from magicvideo.evaluation.confidence_intervals import (
    Estimate,
    Statistic,
    centred_bootstrap,
    median,
    proportion,
    ratio_of_means,
)
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.attributes import background_colour
from magicvideo.evaluation.metrics.distribution import (
    Features,
    extrapolate_to_infinity,
    fit_gaussian,
    frechet_distance,
)
from magicvideo.evaluation.metrics.motion import (
    corner_mask,
    flicker,
    temporal_change,
    temporal_power,
)
from magicvideo.evaluation.metrics.text_alignment import true_ranks
from magicvideo.evaluation.prompt_sets import Prompt
from magicvideo.evaluation.protocol import Protocol, ScoreName
from magicvideo.evaluation.subjects import DEFAULT_TONE
from magicvideo.models.autoencoder import Autoencoder, encode_frames


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """Features and measures of videos, one entry per video."""

    features: Float[np.ndarray, "n d"]
    """The judge's unit features."""
    tones: list[str]
    colours: list[str]
    change: Float[np.ndarray, " n"]
    flicker: Float[np.ndarray, " n"]
    power: Float[np.ndarray, "n frequencies"]
    """Of the latents, by temporal frequency; no column where no autoencoder was given."""


def extract_features(
    judge: Judge,
    videos: Iterable[Float[Tensor, "f 3 h w"]],
    autoencoder: Autoencoder | None = None,
) -> VideoFeatures:
    """Compute features and measures of each video, one at a time to limit memory."""
    features, tones, colours, changes, flickers, powers = [], [], [], [], [], []
    for video in videos:
        frames = video[None]
        features.append(judge.embed_videos(frames).double().numpy())
        tones += judge.read_tones(frames)
        colours.append(background_colour(video))
        changes.append(temporal_change(frames).item())
        flickers.append(flicker(frames, corner_mask(*video.shape[-2:])).item())
        powers.append(np.zeros(0))
        if autoencoder is not None:
            latents = encode_frames(autoencoder, frames.to(autoencoder.device))[0]
            powers[-1] = temporal_power(latents).cpu().numpy()
    return VideoFeatures(
        features=np.concatenate(features),
        tones=tones,
        colours=colours,
        change=np.array(changes),
        flicker=np.array(flickers),
        power=np.stack(powers),
    )


Hits: TypeAlias = Bool[np.ndarray, " n"]
Test: TypeAlias = Callable[[VideoFeatures, int], Hits]
"""Which measured videos fit their prompts, the prompts shifted by a count."""
Ranks: TypeAlias = Int[np.ndarray, " n"]
Ranking: TypeAlias = Callable[[VideoFeatures, int], Ranks]
"""At which place of its pool each video's caption stands, the prompts shifted by a count."""

_FEW = 5
_BAND = 3  # temporal frequencies
_ALONE: tuple[ScoreName, ...] = ("caption_first", "caption_first_five", "caption_median_rank")
_ON_ONE_BACKGROUND: tuple[ScoreName, ...] = (
    "caption_first_same_background",
    "caption_first_five_same_background",
    "caption_median_rank_same_background",
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of a result table.

    Attributes:
        name: Of the measure.
        network: The network of its features; `none` if it is computed on pixels.
        measured: Of the generated videos.
        real: The real clips' own score under the same measure.
        chance: The score of a baseline that ignores the prompt.
        chance_is: The name of that baseline.
        extrapolated: The distance extrapolated to infinite samples, if asked for.
        real_extrapolated: That of the real clips.
    """

    name: ScoreName
    network: str
    measured: Estimate
    real: Estimate
    chance: Estimate
    chance_is: str
    extrapolated: float | None = None
    real_extrapolated: float | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionPools:
    """For each prompt its caption, the first, and captions of other subjects.

    Attributes:
        free: On any background and in any skin tone.
        on_one_background: All on the prompt's own background and in its tone.
    """

    free: list[list[str]]
    on_one_background: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class FeatureSets:
    """Features of generated, real and background-only videos of the same prompts."""

    prompts: list[Prompt]
    generated: VideoFeatures
    real: VideoFeatures
    empty: VideoFeatures
    """Still pictures of the backgrounds alone."""


def score_videos(
    judge: Judge,
    videos: FeatureSets,
    pools: CaptionPools,
    reference: Features,
    protocol: Protocol,
) -> list[Score]:
    """Return all scores of one set of prompts that its data allow.

    Colours need clips with transparency and tones need clips with named tones; motion is measured
    against real motion. A score that has nothing to be measured on is left out.
    """
    prompts, size = videos.prompts, len(pools.free[0])
    features = f"{judge.name}, {videos.real.features.shape[1]} features"
    scores: list[Score] = []
    if size > 1:
        free, one_background = ranks(judge, pools.free), ranks(judge, pools.on_one_background)
        scores += caption_scores(_ALONE, features, free, size, videos)
        scores += caption_scores(_ON_ONE_BACKGROUND, features, one_background, size, videos)
    if any(prompt.background for prompt in prompts):
        scores.append(
            accuracy_score("background_colour", "none", background_matches(prompts), videos)
        )
    if any(prompt.tone != DEFAULT_TONE for prompt in prompts):
        network = f"{judge.name}, its head for tones"
        scores.append(accuracy_score("skin_tone", network, tone_matches(prompts), videos))
    if videos.real.change.any():
        scores.append(ratio_score("temporal_change", lambda m: m.change, videos))
    scores += power_scores(videos)
    if videos.real.flicker.any():
        scores.append(ratio_score("flicker", lambda m: m.flicker, videos))
    if len(reference) > 1:
        scores.append(distance_score(features, videos, reference, protocol))
    return scores


def caption_scores(
    names: tuple[ScoreName, ...],
    network: str,
    ranking: Ranking,
    pool_size: int,
    videos: FeatureSets,
) -> list[Score]:
    """Score the ranks of the own captions: top-1 and top-5 accuracy, and the median rank.

    Top-5 accuracy is not defined for pools of at most five captions.
    """
    first, few, middle = names
    scores = [accuracy_score(first, network, top_k(ranking, 1), videos)]
    if pool_size > _FEW:
        scores.append(accuracy_score(few, network, top_k(ranking, _FEW), videos))
    return [*scores, prompt_score(middle, network, ranking, median, videos)]


def accuracy_score(name: ScoreName, network: str, test: Test, videos: FeatureSets) -> Score:
    """Score the proportion of hits."""
    return prompt_score(name, network, test, proportion, videos)


def prompt_score(
    name: ScoreName,
    network: str,
    read: Test | Ranking,
    summary: Callable[[np.ndarray], Estimate],
    videos: FeatureSets,
) -> Score:
    """Score a comparison of videos with prompts; chance compares with shuffled prompts."""
    return Score(
        name=name,
        network=network,
        measured=summary(read(videos.generated, 0)),
        real=summary(read(videos.real, 0)),
        chance=summary(read(videos.generated, 1)),
        chance_is="prompts shuffled",
    )


def ratio_score(
    name: ScoreName, read: Callable[[VideoFeatures], Float[np.ndarray, " n"]], videos: FeatureSets
) -> Score:
    """Score a mean as a multiple of the real clips'."""
    real = read(videos.real)
    return Score(
        name=name,
        network="none",
        measured=ratio_of_means(read(videos.generated), real),
        real=ratio_of_means(real, real),
        chance=ratio_of_means(read(videos.empty), real),
        chance_is="a still background",
    )


def power_scores(videos: FeatureSets) -> list[Score]:
    """Score the power of the lowest and of the highest three temporal frequencies of the latents.

    Each is the mean over three frequencies of the power as a multiple of the real clips' at that
    frequency. Slow motion is what people see as motion; fast change is what they see as flicker.
    These scores are not defined for clips with fewer than six frequencies, or without motion.
    """
    real = videos.real.power.mean(axis=0)
    if len(real) < 2 * _BAND or not real.all():
        return []
    bands: tuple[tuple[ScoreName, slice], ...] = (
        ("temporal_power_low", slice(0, _BAND)),
        ("temporal_power_high", slice(-_BAND, None)),
    )

    def relative_power(band: slice) -> Callable[[VideoFeatures], Float[np.ndarray, " n"]]:
        return lambda features: (features.power / real)[:, band].mean(axis=1)

    return [ratio_score(name, relative_power(band), videos) for name, band in bands]


def distance_score(
    network: str, videos: FeatureSets, reference: Features, protocol: Protocol
) -> Score:
    """Score the Frechet distance to other real clips; that of real clips is its floor."""

    def between(measured: VideoFeatures) -> Statistic:
        def distance(first: np.ndarray, second: np.ndarray) -> float:
            pair = measured.features[first], reference[second]
            return frechet_distance(
                *(fit_gaussian(side, protocol.covariance_divisor) for side in pair)
            )

        return distance

    def estimate(measured: VideoFeatures) -> Estimate:
        counts = len(measured.features), len(reference)
        return centred_bootstrap(between(measured), *counts, protocol.resamples)

    def endless(measured: VideoFeatures) -> float | None:
        if not protocol.extrapolate:
            return None
        return extrapolate_to_infinity(between(measured), len(measured.features), len(reference))

    return Score(
        name="frechet",
        network=network,
        measured=estimate(videos.generated),
        real=estimate(videos.real),
        chance=estimate(videos.empty),
        chance_is="a still background",
        extrapolated=endless(videos.generated),
        real_extrapolated=endless(videos.real),
    )


def top_k(ranking: Ranking, places: int) -> Test:
    """Return the test whether the own caption is among the first `places` of its pool."""
    return lambda measured, shift: np.less_equal(ranking(measured, shift), places)


def ranks(judge: Judge, pools: list[list[str]]) -> Ranking:
    """Return the ranking of each video's own caption, the first of its pool, in its pool."""
    captions = list(dict.fromkeys(caption for pool in pools for caption in pool))
    number = {caption: place for place, caption in enumerate(captions)}
    places = np.array([[number[caption] for caption in pool] for pool in pools])
    features = judge.embed_captions(captions).double().numpy()

    def ranking(measured: VideoFeatures, shift: int) -> Ranks:
        similarity = measured.features @ features.T
        return true_ranks(np.take_along_axis(similarity, np.roll(places, -shift, axis=0), axis=1))

    return ranking


def background_matches(prompts: list[Prompt]) -> Test:
    """Return the test whether the colour of the corners is the requested one."""
    return _names_match([prompt.background for prompt in prompts], lambda m: m.colours)


def tone_matches(prompts: list[Prompt]) -> Test:
    """Return the test whether the judge reads the tone that the caption names."""
    named = [None if prompt.tone == DEFAULT_TONE else prompt.tone for prompt in prompts]
    return _names_match(named, lambda m: m.tones)


def _names_match(wanted: list[str | None], read: Callable[[VideoFeatures], list[str]]) -> Test:
    """Compare names for the videos whose prompt names one."""
    asked = [place for place, name in enumerate(wanted) if name is not None]

    def test(measured: VideoFeatures, shift: int) -> Hits:
        names = np.roll(np.array([wanted[place] for place in asked]), -shift)
        return np.equal(names, np.array([read(measured)[place] for place in asked]))

    return test

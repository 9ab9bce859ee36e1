"""Scores of generated videos, each beside what real clips and what chance would get."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluate.clips import Prompt, caption_for
from magicvideo.evaluate.intervals import Estimate, ratio_of_means, share
from magicvideo.evaluate.judge.batches import DEFAULT_TONE
from magicvideo.evaluate.judge.network import Judge
from magicvideo.evaluate.measure import Measured
from magicvideo.evaluate.metrics.frechet import Divisor, Features, fit_gaussian, frechet_distance
from magicvideo.evaluate.metrics.retrieval import own_ranks
from magicvideo.evaluate.protocol import ScoreName

Hits: TypeAlias = Bool[np.ndarray, " n"]
Test: TypeAlias = Callable[[Measured, int], Hits]
"""Which measured videos fit their prompts, the prompts shifted by a count."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of a result table."""

    name: ScoreName
    measured: Estimate
    real: Estimate
    """The real clips' own score under the same measure."""
    chance: Estimate
    chance_is: str
    """Whose score `chance` is."""


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Generated videos, and the real and the empty ones of the same prompts in the same order."""

    prompts: list[Prompt]
    generated: Measured
    real: Measured
    empty: Measured
    """Still pictures of the backgrounds alone."""


def score_videos(
    judge: Judge,
    dataset: ClipDataset,
    videos: Videos,
    pools: Int[np.ndarray, "n pool"],
    reference: Features,
    divisor: Divisor,
) -> list[Score]:
    """Return all scores of one set of prompts that its data allow.

    Colours need clips with transparency and tones need clips with named tones; motion is measured
    against real motion. A score that has nothing to be measured on is left out.
    """
    prompts = videos.prompts
    scores = [
        share_score("caption_first", first_of_pool(judge, prompts, pools), videos),
        share_score(
            "caption_first_same_background",
            first_of_pool_on_one_background(judge, dataset, prompts, pools),
            videos,
        ),
    ]
    if any(prompt.background for prompt in prompts):
        scores.append(share_score("background_colour", background_read(prompts), videos))
    if any(prompt.tone != DEFAULT_TONE for prompt in prompts):
        scores.append(share_score("skin_tone", tone_read(prompts), videos))
    if videos.real.change.any():
        scores.append(ratio_score("temporal_change", lambda m: m.change, videos))
    if videos.real.flicker.any():
        scores.append(ratio_score("flicker", lambda m: m.flicker, videos))
    scores.append(distance_score(videos, reference, divisor))
    return scores


def share_score(name: ScoreName, test: Test, videos: Videos) -> Score:
    """Score a share of hits; chance is every video asked for the next video's prompt."""
    return Score(
        name=name,
        measured=share(test(videos.generated, 0)),
        real=share(test(videos.real, 0)),
        chance=share(test(videos.generated, 1)),
        chance_is="prompts shuffled",
    )


def ratio_score(
    name: ScoreName, read: Callable[[Measured], Float[np.ndarray, " n"]], videos: Videos
) -> Score:
    """Score a mean as a multiple of the real clips'."""
    real = read(videos.real)
    return Score(
        name=name,
        measured=ratio_of_means(read(videos.generated), real),
        real=ratio_of_means(real, real),
        chance=ratio_of_means(read(videos.empty), real),
        chance_is="a still background",
    )


def distance_score(videos: Videos, reference: Features, divisor: Divisor) -> Score:
    """Score the Frechet distance to other real clips; that of real clips is its floor."""
    goal = fit_gaussian(reference, divisor)

    def distance(measured: Measured) -> Estimate:
        value = frechet_distance(fit_gaussian(measured.features, divisor), goal)
        return Estimate(value, len(measured.features))

    return Score(
        name="frechet",
        measured=distance(videos.generated),
        real=distance(videos.real),
        chance=distance(videos.empty),
        chance_is="a still background",
    )


def first_of_pool(judge: Judge, prompts: list[Prompt], pools: Int[np.ndarray, "n pool"]) -> Test:
    """Return the test: the own caption, background included, ranks first in its pool."""
    captions = judge.embed_captions([prompt.caption for prompt in prompts]).double().numpy()
    return lambda measured, shift: _rank_first(measured.features @ captions.T, pools, shift)


def first_of_pool_on_one_background(
    judge: Judge, dataset: ClipDataset, prompts: list[Prompt], pools: Int[np.ndarray, "n pool"]
) -> Test:
    """Return the harder test: all captions of a pool name the video's own background.

    The colour then tells nothing, so this is about the figure and what it does.
    """
    features = {}
    for background in {prompt.background for prompt in prompts}:
        captions = [caption_for(dataset, prompt, background) for prompt in prompts]
        features[background] = judge.embed_captions(captions).double().numpy()

    def test(measured: Measured, shift: int) -> Hits:
        pairs = zip(prompts, measured.features, strict=True)
        similarity = np.stack([features[prompt.background] @ seen for prompt, seen in pairs])
        return _rank_first(similarity, pools, shift)

    return test


def background_read(prompts: list[Prompt]) -> Test:
    """Return the test: the colour read from the corners is the one asked for."""
    return _names_match([prompt.background for prompt in prompts], lambda m: m.colours)


def tone_read(prompts: list[Prompt]) -> Test:
    """Return the test: the tone that the judge reads is the one that the caption names."""
    named = [None if prompt.tone == DEFAULT_TONE else prompt.tone for prompt in prompts]
    return _names_match(named, lambda m: m.tones)


def _rank_first(
    similarity: Float[np.ndarray, "n m"], pools: Int[np.ndarray, "n pool"], shift: int
) -> Hits:
    pools = np.roll(pools, -shift, axis=0)
    return np.equal(own_ranks(np.take_along_axis(similarity, pools, axis=1)), 1)


def _names_match(wanted: list[str | None], read: Callable[[Measured], list[str]]) -> Test:
    """Compare names, over those videos alone whose prompt names something."""
    asked = [place for place, name in enumerate(wanted) if name is not None]

    def test(measured: Measured, shift: int) -> Hits:
        names = np.roll(np.array([wanted[place] for place in asked]), -shift)
        return np.equal(names, np.array([read(measured)[place] for place in asked]))

    return test

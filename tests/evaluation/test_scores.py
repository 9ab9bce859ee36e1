from dataclasses import replace

import numpy as np
import pytest

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import FrameSize
from magicvideo.evaluation.prompt_sets import (
    background_only_videos,
    real_videos,
    rival_captions,
    sample_prompts,
)
from magicvideo.evaluation.protocol import read_protocol
from magicvideo.evaluation.scores import (
    CaptionPools,
    FeatureSets,
    VideoFeatures,
    accuracy_score,
    background_matches,
    caption_scores,
    distance_score,
    extract_features,
    power_scores,
    ranks,
    score_videos,
    tone_matches,
    top_k,
)
from magicvideo.evaluation.subjects import Subjects

NUM_FRAMES, STRIDE, COUNT, POOL = 5, 2, 17, 6
FRAME_SIZE = FrameSize(24, 24)


@pytest.fixture
def prompts(every_clip):
    return sample_prompts(every_clip, COUNT, seed=3)


@pytest.fixture
def pools(every_clip, prompts):
    return pools_of(every_clip, prompts, POOL)


def pools_of(dataset, prompts, size):
    subjects = Subjects(dataset)
    free, one_background = (
        rival_captions(dataset, subjects, prompts, size, seed=0, on_one_background=is_one)
        for is_one in (False, True)
    )
    return CaptionPools(free=free, on_one_background=one_background)


@pytest.fixture
def real(judge, every_clip, prompts):
    return extract_features(judge, real_videos(every_clip, prompts, NUM_FRAMES, STRIDE))


@pytest.fixture
def empty(judge, prompts):
    return extract_features(judge, background_only_videos(prompts, NUM_FRAMES, FRAME_SIZE))


def protocol(**values):
    few = {"resamples": 50, "extrapolate": False}
    return read_protocol("emoji-heldout").model_copy(update=few | values)


def with_features(measured: VideoFeatures, features) -> VideoFeatures:
    return VideoFeatures(
        features=features,
        tones=measured.tones,
        colours=measured.colours,
        change=measured.change,
        flicker=measured.flicker,
        power=measured.power,
    )


def test_a_perfect_model_scores_as_real_clips_do(judge, prompts, pools, real, empty):
    videos = FeatureSets(prompts=prompts, generated=real, real=real, empty=empty)
    scores = score_videos(judge, videos, pools, real.features, protocol())
    found = {score.name: score for score in scores}
    assert list(found) == [
        "caption_first",
        "caption_first_five",
        "caption_median_rank",
        "caption_first_same_background",
        "caption_first_five_same_background",
        "caption_median_rank_same_background",
        "background_colour",
        "skin_tone",
        "temporal_change",
        "frechet",  # flicker is left out: nothing moves in the corners of these clips
    ]
    assert all(score.measured == score.real for score in scores)
    assert found["background_colour"].measured.value == 1.0
    assert found["background_colour"].chance.value < 0.4
    assert found["temporal_change"].measured.value == 1.0
    assert found["temporal_change"].chance.value == 0.0
    assert found["frechet"].measured.value == pytest.approx(0, abs=1e-6)
    assert found["frechet"].chance.value > 1e-5
    assert {score.network: score.name for score in scores} == {
        "judge, 64 features": "frechet",
        "judge, its head for tones": "skin_tone",
        "none": "temporal_change",
    }


def test_videos_that_match_their_captions_rank_first_and_shuffled_ones_do_not(
    judge, prompts, pools, real
):
    captions = [prompt.caption for prompt in prompts]
    matching = with_features(real, judge.embed_captions(captions).double().numpy())
    test = top_k(ranks(judge, pools.free), 1)
    assert test(matching, 0).all()
    assert test(matching, 1).mean() < 0.3
    assert test(matching, 5).mean() < 0.3


def test_the_same_background_test_gives_no_score_for_the_colour(judge, prompts, pools, real):
    captions = [prompt.caption for prompt in prompts]
    matching = with_features(real, judge.embed_captions(captions).double().numpy())
    test = top_k(ranks(judge, pools.on_one_background), 1)
    assert test(matching, 0).all()
    only_colour = [f"{prompt.background} background" for prompt in prompts]
    colour_alone = with_features(real, judge.embed_captions(only_colour).double().numpy())
    assert test(colour_alone, 0).mean() < 0.5


def test_ranks_equal_a_plain_loop(judge, prompts, pools, real):
    # features that agree a little with every second video's own caption, so that both cases occur
    noise = np.random.default_rng(0).standard_normal((COUNT, 64)) / 20
    own = judge.embed_captions([prompt.caption for prompt in prompts]).double().numpy()
    features = noise + own * (np.arange(COUNT) % 2)[:, None]
    expected = []
    for feature, captions in zip(features, pools.on_one_background, strict=True):
        similarity = judge.embed_captions(captions).double().numpy() @ feature
        expected.append(similarity[0] > similarity[1:].max())
    test = top_k(ranks(judge, pools.on_one_background), 1)
    assert test(with_features(real, features), 0).tolist() == expected
    assert 0 < sum(expected) < COUNT


def test_power_is_scored_by_band_and_real_clips_have_one(real, prompts):
    rng = np.random.default_rng(0)
    spectrum = np.array([14.0, 4, 3, 1, 1, 0.5, 0.3, 0.1])
    measured = {
        "real": spectrum * rng.uniform(0.5, 1.5, (COUNT, 8)),
        "generated": spectrum * [0.5, 0.5, 0.5, 7, 7, 2, 2, 2] * rng.uniform(0.9, 1.1, (COUNT, 8)),
        "empty": np.zeros((COUNT, 8)),
    }
    sides = {name: replace(real, power=power) for name, power in measured.items()}
    low, high = power_scores(FeatureSets(prompts=prompts, **sides))
    assert (low.name, high.name) == ("temporal_power_low", "temporal_power_high")
    assert low.real.value == high.real.value == pytest.approx(1)
    ratios = (measured["generated"] / measured["real"].mean(axis=0)).mean(axis=0)
    assert low.measured.value == pytest.approx(ratios[:3].mean())
    assert high.measured.value == pytest.approx(ratios[5:].mean())
    assert low.measured.value == pytest.approx(0.5, rel=0.2)
    assert (low.chance.value, low.chance_is) == (0, "a still background")


def test_too_few_frequencies_or_still_clips_have_no_power_score(real, prompts):
    for power in (np.ones((COUNT, 5)), np.zeros((COUNT, 8)), np.zeros((COUNT, 0))):
        side = replace(real, power=power)
        assert (
            power_scores(FeatureSets(prompts=prompts, generated=side, real=side, empty=side)) == []
        )


def test_tones_are_scored_only_for_captions_with_a_tone(prompts, real):
    named = [prompt.tone for prompt in prompts if prompt.tone != "default"]
    assert 3 < len(named) < COUNT
    right = VideoFeatures(
        features=real.features,
        tones=[prompt.tone for prompt in prompts],
        colours=real.colours,
        change=real.change,
        flicker=real.flicker,
        power=real.power,
    )
    assert tone_matches(prompts)(right, 0).tolist() == [True] * len(named)
    shifted = [tone == after for tone, after in zip(named, named[1:] + named[:1], strict=True)]
    assert tone_matches(prompts)(right, 1).tolist() == shifted


def test_chance_is_measured_on_shuffled_prompts(prompts, real, empty):
    videos = FeatureSets(prompts=prompts, generated=empty, real=real, empty=empty)
    score = accuracy_score("background_colour", "none", background_matches(prompts), videos)
    colours = [prompt.background for prompt in prompts]
    same = [left == right for left, right in zip(colours, colours[1:] + colours[:1], strict=True)]
    assert score.measured.value == 1.0
    assert score.chance.value == pytest.approx(np.mean(same))


def test_clips_without_colour_or_tone_have_no_such_scores(judge, prepared):
    dataset = ClipDataset(prepared, ("train", "heldout"))
    prompts = sample_prompts(dataset, 5, seed=0)
    pools = pools_of(dataset, prompts, 3)
    real = extract_features(judge, real_videos(dataset, prompts, NUM_FRAMES, STRIDE))
    empty = extract_features(judge, background_only_videos(prompts, NUM_FRAMES, FRAME_SIZE))
    videos = FeatureSets(prompts=prompts, generated=empty, real=real, empty=empty)
    scores = score_videos(judge, videos, pools, real.features, protocol())
    names = {score.name for score in scores}
    assert not names & {"background_colour", "skin_tone"}
    assert {"caption_first", "temporal_change", "frechet"} <= names
    assert "caption_first_five" not in names  # among three captions it would tell nothing


def test_ranks_of_captions_become_fractions_and_a_median(prompts, real, empty):
    videos = FeatureSets(prompts=prompts, generated=empty, real=real, empty=empty)
    places = np.array([1, 1, 1, 1, 2, 2, 3, 5, 5, 6, 6, 6, 7, 7, 7, 7, 7])

    def ranking(measured, shift):
        return np.ones_like(places) if measured is real else np.minimum(places + shift, 7)

    names = ("caption_first", "caption_first_five", "caption_median_rank")
    first, few, middle = caption_scores(names, "a judge", ranking, 7, videos)
    assert (first.measured.value, few.measured.value) == (4 / 17, 9 / 17)
    assert (few.real.value, few.chance.value) == (1.0, 7 / 17)
    assert (middle.measured.value, middle.real.value, middle.chance.value) == (5.0, 1.0, 6.0)
    assert (middle.measured.low, middle.measured.high) == (2.0, 7.0)
    assert {score.network for score in (first, few, middle)} == {"a judge"}


def test_the_interval_of_the_distance_is_that_of_new_videos():
    rng = np.random.default_rng(0)
    scale = 1 / np.arange(1, 9)

    def draw(count, shift):
        features = shift + scale * rng.standard_normal((count, 8))
        none = np.zeros(count)
        return VideoFeatures(
            features=features, tones=[], colours=[], change=none, flicker=none, power=none[:, None]
        )

    def score(resamples, extrapolate):
        videos = FeatureSets(
            prompts=[], generated=draw(90, 0.3), real=draw(90, 0.0), empty=draw(90, 1.0)
        )
        settings = protocol(resamples=resamples, extrapolate=extrapolate)
        return distance_score("a judge", videos, draw(400, 0.0).features, settings)

    found = score(200, extrapolate=True)
    assert (found.measured.count, found.real.count) == (90, 90)
    assert found.measured.low < found.measured.value < found.measured.high
    assert found.real.value < found.measured.low < found.measured.high < found.chance.low
    many = [score(2, extrapolate=True) for _ in range(60)]
    spread = np.std([each.measured.value for each in many])
    assert (found.measured.high - found.measured.low) / 2 / 1.96 == pytest.approx(spread, rel=0.4)
    floor = np.mean([each.real.value for each in many])
    # the truth is 8 times 0.3 squared, and nothing for the real clips
    assert np.mean([each.extrapolated for each in many]) == pytest.approx(0.72, abs=floor / 2)
    assert abs(np.mean([each.real_extrapolated for each in many])) < floor / 3
    again = score(2, extrapolate=False)
    assert (again.extrapolated, again.real_extrapolated) == (None, None)

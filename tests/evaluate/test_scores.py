import numpy as np
import pytest

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluate.clips import caption_for, draw_prompts, empty_videos, real_videos
from magicvideo.evaluate.measure import Measured, measure
from magicvideo.evaluate.metrics.retrieval import draw_pools
from magicvideo.evaluate.scores import (
    Videos,
    background_read,
    first_of_pool,
    first_of_pool_on_one_background,
    score_videos,
    share_score,
    tone_read,
)

NUM_FRAMES, STRIDE, COUNT, POOL = 5, 2, 17, 7


@pytest.fixture
def prompts(every_clip):
    return draw_prompts(every_clip, COUNT, seed=3)


@pytest.fixture
def pools(prompts):
    return draw_pools([prompt.caption for prompt in prompts], POOL, seed=0)


@pytest.fixture
def real(judge, every_clip, prompts):
    return measure(judge, real_videos(every_clip, prompts, NUM_FRAMES, STRIDE))


@pytest.fixture
def empty(judge, prompts):
    return measure(judge, empty_videos(prompts, NUM_FRAMES, 24))


def with_features(measured: Measured, features) -> Measured:
    return Measured(
        features=features,
        tones=measured.tones,
        colours=measured.colours,
        change=measured.change,
        flicker=measured.flicker,
    )


def test_a_perfect_model_scores_as_real_clips_do(judge, every_clip, prompts, pools, real, empty):
    videos = Videos(prompts=prompts, generated=real, real=real, empty=empty)
    scores = score_videos(judge, every_clip, videos, pools, real.features, "n-1")
    found = {score.name: score for score in scores}
    assert list(found) == [
        "caption_first",
        "caption_first_same_background",
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


def test_videos_that_match_their_captions_rank_first_and_shuffled_ones_do_not(
    judge, prompts, pools, real
):
    captions = [prompt.caption for prompt in prompts]
    matching = with_features(real, judge.embed_captions(captions).double().numpy())
    test = first_of_pool(judge, prompts, pools)
    assert test(matching, 0).all()
    assert test(matching, 1).mean() < 0.2
    assert test(matching, 5).mean() < 0.2


def test_the_harder_test_gives_nothing_for_the_colour(judge, every_clip, prompts, pools, real):
    captions = [prompt.caption for prompt in prompts]
    matching = with_features(real, judge.embed_captions(captions).double().numpy())
    test = first_of_pool_on_one_background(judge, every_clip, prompts, pools)
    assert test(matching, 0).all()
    only_colour = [f"{prompt.background} background" for prompt in prompts]
    colour_alone = with_features(real, judge.embed_captions(only_colour).double().numpy())
    assert test(colour_alone, 0).mean() < 0.5


def test_the_harder_test_is_the_loop_written_out(judge, every_clip, prompts, pools):
    # features that agree a little with every second video's own caption, so that both cases occur
    noise = np.random.default_rng(0).standard_normal((COUNT, 64)) / 20
    own = judge.embed_captions([prompt.caption for prompt in prompts]).double().numpy()
    features = noise + own * (np.arange(COUNT) % 2)[:, None]
    expected = []
    for feature, pool in zip(features, pools, strict=True):
        background = prompts[pool[0]].background
        captions = [caption_for(every_clip, prompts[place], background) for place in pool]
        similarity = judge.embed_captions(captions).double().numpy() @ feature
        expected.append(similarity[0] > similarity[1:].max())
    test = first_of_pool_on_one_background(judge, every_clip, prompts, pools)
    measured = Measured(
        features=features, tones=[], colours=[], change=np.zeros(COUNT), flicker=np.zeros(COUNT)
    )
    assert test(measured, 0).tolist() == expected
    assert 0 < sum(expected) < COUNT


def test_tones_are_asked_of_those_that_are_named(prompts, real):
    named = [prompt.tone for prompt in prompts if prompt.tone != "default"]
    assert 3 < len(named) < COUNT
    right = Measured(
        features=real.features,
        tones=[prompt.tone for prompt in prompts],
        colours=real.colours,
        change=real.change,
        flicker=real.flicker,
    )
    assert tone_read(prompts)(right, 0).tolist() == [True] * len(named)
    shifted = [tone == after for tone, after in zip(named, named[1:] + named[:1], strict=True)]
    assert tone_read(prompts)(right, 1).tolist() == shifted


def test_chance_is_measured_on_shuffled_prompts(prompts, real, empty):
    videos = Videos(prompts=prompts, generated=empty, real=real, empty=empty)
    score = share_score("background_colour", background_read(prompts), videos)
    colours = [prompt.background for prompt in prompts]
    same = [left == right for left, right in zip(colours, colours[1:] + colours[:1], strict=True)]
    assert score.measured.value == 1.0
    assert score.chance.value == pytest.approx(np.mean(same))


def test_clips_without_colour_or_tone_have_no_such_scores(judge, prepared):
    dataset = ClipDataset(prepared, ("train", "heldout"))
    prompts = draw_prompts(dataset, 5, seed=0)
    pools = draw_pools([prompt.caption for prompt in prompts], 3, seed=0)
    real = measure(judge, real_videos(dataset, prompts, NUM_FRAMES, STRIDE))
    empty = measure(judge, empty_videos(prompts, NUM_FRAMES, 24))
    videos = Videos(prompts=prompts, generated=empty, real=real, empty=empty)
    scores = score_videos(judge, dataset, videos, pools, real.features, "n")
    names = {score.name for score in scores}
    assert not names & {"background_colour", "skin_tone"}
    assert {"caption_first", "temporal_change", "frechet"} <= names

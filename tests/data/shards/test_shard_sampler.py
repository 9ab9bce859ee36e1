import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from magicvideo.data.shards.dataset import ShardSampler

COUNTS = st.lists(st.integers(1, 6), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 4), st.integers(0, 9), st.integers(0, 2))
def test_every_epoch_is_a_permutation_with_few_open_shards(counts, window, seed, epoch):
    order = ShardSampler(tuple(counts), window)
    first = epoch * order.length
    clips = order.clips(seed, first, order.length)
    assert sorted(clips) == list(range(order.length))
    touched = {}
    for place, clip in enumerate(clips):
        _, number, _ = order.locate(seed, first + place)
        touched.setdefault(number, set()).add(order.shard_of(clip)[0])
    for number, shards in touched.items():
        assert len(shards) <= window
        assert shards == set(order.window_shards(seed, epoch, number))
    assert sorted(touched) == list(range(len(touched)))


@settings(max_examples=20, deadline=None)
@given(COUNTS, st.integers(1, 3), st.integers(0, 90), st.integers(0, 40))
def test_the_order_does_not_depend_on_the_first_position(counts, window, first, count):
    from_the_start = ShardSampler(tuple(counts), window).clips(3, 0, first + count)
    assert ShardSampler(tuple(counts), window).clips(3, first, count) == from_the_start[first:]


def test_clips_are_found_in_their_shards():
    order = ShardSampler((3, 1, 4), 2)
    places = [order.shard_of(clip) for clip in range(order.length)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_seeds_and_epochs_differ_and_windows_continue_across_epochs():
    order = ShardSampler((5,) * 12, 3)
    orders = {tuple(order.clips(seed, epoch * 60, 60)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert order.window_shards(1, 0, 4) == order.window_shards(1, 1, 0)


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.integers(1, 4), st.integers(0, 9), st.data())
def test_a_weighted_epoch_has_each_clip_by_its_weight(counts, window, seed, data):
    weights = [
        np.array(data.draw(st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=n, max_size=n)))
        for n in counts
    ]
    sampler = ShardSampler(tuple(counts), window, weights)
    total = sum(map(np.sum, weights))
    clips = sampler.clips(seed, 0, sampler.length)
    for number, weight in enumerate(np.concatenate(weights)):
        # a window's share of the epoch is rounded, and so is a clip's share of its window
        assert abs(clips.count(number) - sampler.length * weight / total) < 2
    touched = {}
    for place, clip in enumerate(clips):
        epoch, number, within = sampler.locate(seed, place)
        assert epoch == 0
        assert 0 <= within < sampler.window_length(seed, 0, number)
        touched.setdefault(number, set()).add(sampler.shard_of(clip)[0])
    for number, shards in touched.items():
        assert shards <= set(sampler.window_shards(seed, 0, number))


def test_a_sampler_is_the_same_in_another_process():
    sampler = ShardSampler((3, 1, 4), 2, [np.ones(3), np.ones(1), np.full(4, 0.5)])
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy.clips(1, 0, 20) == sampler.clips(1, 0, 20)

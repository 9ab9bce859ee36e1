from hypothesis import given, settings
from hypothesis import strategies as st

from magicvideo.data.shards.dataset import ShardSampler

COUNTS = st.lists(st.integers(1, 6), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 4), st.integers(0, 9), st.integers(0, 2))
def test_every_epoch_is_a_permutation_that_few_shards_are_open_for(counts, window, seed, epoch):
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
def test_the_order_does_not_depend_on_where_reading_begins(counts, window, first, count):
    from_the_start = ShardSampler(tuple(counts), window).clips(3, 0, first + count)
    assert ShardSampler(tuple(counts), window).clips(3, first, count) == from_the_start[first:]


def test_clips_are_found_in_their_shards():
    order = ShardSampler((3, 1, 4), 2)
    places = [order.shard_of(clip) for clip in range(order.length)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_seeds_and_epochs_differ_and_the_next_window_may_be_the_next_epochs():
    order = ShardSampler((5,) * 12, 3)
    orders = {tuple(order.clips(seed, epoch * 60, 60)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert order.window_shards(1, 0, 4) == order.window_shards(1, 1, 0)

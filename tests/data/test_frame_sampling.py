import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicvideo.data.dataset import sample_frame_indices


@given(
    length=st.integers(1, 200),
    num_frames=st.integers(1, 40),
    lowest=st.integers(1, 5),
    more=st.integers(0, 4),
    loops=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_frames_are_evenly_spaced_and_inside(length, num_frames, lowest, more, loops, seed):
    highest = lowest + more
    rng = np.random.default_rng(seed)
    chosen, stride = sample_frame_indices(length, num_frames, (lowest, highest), rng, loops=loops)
    assert len(chosen) == num_frames
    assert chosen.min() >= 0
    assert chosen.max() < length
    if length >= num_frames:
        assert (np.diff(chosen) == stride).all()
        assert 1 <= stride <= highest
        fits = (num_frames - 1) * lowest < length
        assert stride >= lowest if fits else stride == (length - 1) // (num_frames - 1)


def test_every_stride_and_start_that_fits_is_sampled():
    drawn = set()
    for seed in range(600):
        rng = np.random.default_rng(seed)
        chosen, stride = sample_frame_indices(11, 5, (1, 4), rng, loops=False)
        drawn.add((stride, int(chosen[0])))
    starts = {1: range(7), 2: range(3)}  # five frames at stride 3 would be 13 long
    assert drawn == {(stride, start) for stride in starts for start in starts[stride]}


@pytest.mark.parametrize(
    ("loops", "expected"), [(True, [0, 1, 2, 0, 1, 2, 0]), (False, [0, 1, 2, 2, 2, 2, 2])]
)
def test_short_clips_loop_or_hold_the_last_frame(loops, expected):
    chosen, stride = sample_frame_indices(3, 7, (2, 4), np.random.default_rng(0), loops=loops)
    assert (chosen.tolist(), stride) == (expected, 1)

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magicvideo.data.shards.tar_shard import from_scaled_fp16, to_scaled_fp16

NUMBERS = st.floats(-(2.0**60), 2.0**60, width=32).map(lambda x: x if abs(x) > 2.0**-110 else 0.0)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (3, 5), elements=NUMBERS))
def test_the_round_trip_keeps_11_bits(values):
    stored, scale = to_scaled_fp16(values)
    assert np.isfinite(stored).all()
    back = from_scaled_fp16(stored, scale).numpy()
    smallest = np.abs(values).max() * 2.0**-28
    assert (np.abs(back - values) <= np.maximum(np.abs(values), smallest) * 2.0**-11).all()


@pytest.mark.parametrize("largest", [1e-12, 3.0, 65504.0, 70000.0, 1e20])
def test_the_scale_is_a_power_of_two_and_the_largest_fills_the_range(largest):
    stored, scale = to_scaled_fp16(np.array([largest, -largest / 3], np.float32))
    assert math.frexp(scale)[0] == 0.5
    assert 2**14 <= stored[0] <= 2**15


def test_zeros_stay_zeros():
    stored, scale = to_scaled_fp16(np.zeros((2, 3), np.float32))
    assert not from_scaled_fp16(stored, scale).any()


def test_very_small_numbers_only_lose_precision():
    values = np.array([1e-43, -3e-39, 0.0], np.float32)
    back = from_scaled_fp16(*to_scaled_fp16(values)).numpy()
    np.testing.assert_allclose(back, values, rtol=2.0**-11, atol=2.0**-148)

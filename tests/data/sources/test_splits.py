import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicvideo.data.sources.source import heldout_combinations, split_by_hash

TONES = ("default", "light", "medium-light", "medium", "medium-dark", "dark")


@given(st.sets(st.tuples(st.text(max_size=3), st.sampled_from(TONES)), max_size=60))
def test_no_figure_and_no_tone_is_held_out_completely(pairs):
    heldout = heldout_combinations(list(pairs))
    training = pairs - heldout
    assert heldout <= pairs
    assert {base for base, _ in training} == {base for base, _ in pairs}
    assert {tone for _, tone in training} == {tone for _, tone in pairs}


def test_about_one_in_ten_is_held_out_and_it_stays_so():
    pairs = [(f"base {number}", tone) for number in range(500) for tone in TONES]
    heldout = heldout_combinations(pairs)
    assert len(heldout) / len(pairs) == pytest.approx(0.1, abs=0.01)
    assert heldout_combinations(pairs[::-1]) == heldout
    fewer = pairs[: len(pairs) // 2]
    assert heldout_combinations(fewer) == heldout & set(fewer)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_fraction_of_ids_is_held_out(share):
    ids = [f"clip{number}" for number in range(3000)]
    heldout = [clip_id for clip_id in ids if split_by_hash(clip_id, share) == "heldout"]
    assert len(heldout) / len(ids) == pytest.approx(share, abs=0.02)
    smaller = {clip_id for clip_id in ids if split_by_hash(clip_id, share / 2) == "heldout"}
    assert smaller <= set(heldout)  # a larger share only adds

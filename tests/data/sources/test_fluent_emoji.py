import re
from collections import Counter

import pytest

from magicvideo.data.sources.fluent_emoji import MARKER, NOTICE, emoji_records, scan

LISTED = emoji_records()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A fetched folder in which the files are empty, one is missing and one is not listed."""
    folder = tmp_path_factory.mktemp("emoji")
    (folder / "clips").mkdir()
    (folder / MARKER).write_text(NOTICE)
    for clip in LISTED[1:]:
        (folder / f"clips/{clip.code}.webp").touch()
    (folder / "clips/0000.webp").touch()
    return scan(folder)


def test_the_emoji_list_is_complete():
    assert len(LISTED) == len({clip.code for clip in LISTED}) == 2014
    assert len({clip.name for clip in LISTED}) == 2014
    assert Counter(clip.package for clip in LISTED) == {1: 451, 2: 469, 3: 568, 4: 526}
    assert all(re.fullmatch("[0-9a-f]{64}", clip.sha256) for clip in LISTED)
    assert all(re.fullmatch("[0-9a-f]+(-[0-9a-f]+)*", clip.code) for clip in LISTED)
    assert Counter(clip.skin_tone for clip in LISTED) == {
        None: 699,
        **dict.fromkeys(("light", "medium-light", "medium", "medium-dark", "dark"), 263),
    }


def test_a_missing_and_an_unexpected_file_are_reported(source):
    assert len(source.clips) == 2013
    reasons = {skipped.file: skipped.reason for skipped in source.skipped}
    assert reasons == {
        f"clips/{LISTED[0].code}.webp": "missing; fetch it with `magicvideo data fetch`",
        "clips/0000.webp": "not in the list of MIT clips",
    }


def test_held_out_combinations_consist_of_parts_seen_in_training(source):
    pairs = {"train": set(), "heldout": set()}
    for candidate in source.clips:
        known = candidate.attributes
        pairs[candidate.split].add((known.base, known.skin_tone))
    assert len(pairs["heldout"]) == 146
    assert {base for base, _ in pairs["heldout"]} <= {base for base, _ in pairs["train"]}
    assert {tone for _, tone in pairs["heldout"]} == {tone for _, tone in pairs["train"]}
    tones = Counter(base for base, _ in pairs["train"] | pairs["heldout"])
    assert all(tones[base] == 6 for base, _ in pairs["heldout"])


def test_the_split_is_the_one_that_weights_were_trained_on(source):
    heldout = sorted(one.attributes.name for one in source.clips if one.split == "heldout")
    assert heldout[:3] == [
        "OK hand",
        "Santa Claus: medium-light skin tone",
        "backhand index pointing down: medium-dark skin tone",
    ]


def test_attributes_and_counts_come_from_the_list(source):
    (surfer,) = [one for one in source.clips if one.id == "1f3c4-1f3fd-200d-2640-fe0f"]
    assert surfer.attributes.base == "woman surfing"
    assert surfer.attributes.skin_tone == "medium"
    assert surfer.attributes.gender == "female"
    assert "beach" in surfer.attributes.keywords
    assert surfer.loops
    assert surfer.frames > 40
    assert "Microsoft" in source.licence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicvideo.data.backgrounds import Background, random_background
from magicvideo.data.captions import (
    canonical_caption,
    random_caption,
    subject_phrase,
    usable_keywords,
)
from magicvideo.data.manifest import Attributes, ClipRecord
from magicvideo.data.sources.fluent_emoji import attributes_of, emoji_records

LISTED = emoji_records()
BLUE = Background("blue")


def make_clip(attributes=None, text=None, alt_captions=()):
    return ClipRecord(
        id="x",
        file="clips/x.npy",
        frames=5,
        fps=24,
        channels=4,
        split="train",
        loops=True,
        sha256="0",
        text=text,
        alt_captions=alt_captions,
        attributes=attributes,
    )


SURFER = make_clip(
    Attributes(
        name="woman surfing: medium skin tone",
        base="woman surfing",
        keywords=("beach", "ocean", "woman", "woman surfing", "42", "female", "up"),
        skin_tone="medium",
        gender="female",
    )
)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("woman surfing", "woman surfing"),
        ("person gesturing NO", "person gesturing NO"),
        ("man: curly hair", "man with curly hair"),
        ("woman: bald", "bald woman"),
        ("person: beard", "person with a beard"),
    ],
)
def test_names_become_words(base, words):
    assert subject_phrase(base) == words


def test_the_canonical_caption():
    assert canonical_caption(SURFER, BLUE) == "woman surfing, medium skin tone, blue background"
    assert canonical_caption(make_clip(text="a dog runs"), None) == "a dog runs"
    gradient = Background("blue", "pink", "diagonal")
    assert canonical_caption(make_clip(text="a dog"), gradient) == (
        "a dog, gradient from blue to pink background"
    )


def test_tone_stands_beside_what_else_the_name_says():
    (clip,) = [one for one in LISTED if one.name == "man: dark skin tone, curly hair"]
    caption = canonical_caption(make_clip(attributes_of(clip)), BLUE)
    assert caption == "man with curly hair, dark skin tone, blue background"


def test_canonical_captions_are_all_different():
    assert len({canonical_caption(make_clip(attributes_of(clip)), None) for clip in LISTED}) == 2014


def test_keywords_are_words_that_add_something():
    assert usable_keywords(SURFER.attributes) == ["beach", "ocean", "woman"]


@given(st.integers(0, len(LISTED) - 1), st.integers(0, 10_000))
def test_varied_captions_are_deterministic_and_never_wrong(index, seed):
    clip = make_clip(attributes_of(LISTED[index]))
    background = random_background(np.random.default_rng(seed))
    caption = random_caption(clip, background, np.random.default_rng(seed))
    assert caption == random_caption(clip, background, np.random.default_rng(seed))
    assert caption.strip(" ,") == caption
    assert ",," not in caption
    assert "  " not in caption
    if "background" in caption:
        assert background.phrase in caption
    if not clip.attributes.skin_tone:
        assert "skin" not in caption.replace(subject_phrase(clip.attributes.base), "")


def sampling_weights(clip, words, count=3000):
    rng = np.random.default_rng(1)
    captions = [random_caption(clip, BLUE, rng) for _ in range(count)]
    return [sum(word in caption for caption in captions) / count for word in words]


def test_each_part_is_left_out_as_often_as_stated():
    name, tone, background, keyword = shares(
        SURFER, ["woman surfing", "medium skin", "blue background", "ocean"]
    )
    assert name == pytest.approx(0.85, abs=0.03)
    assert tone == pytest.approx(0.90, abs=0.03)
    assert background == pytest.approx(0.85, abs=0.03)
    assert 0.1 < keyword < 0.4


def test_keywords_alone_still_say_the_gender():
    rng = np.random.default_rng(2)
    captions = [random_caption(SURFER, None, rng) for _ in range(500)]
    without_name = [caption for caption in captions if "woman surfing" not in caption]
    assert without_name
    assert all("woman" in caption for caption in without_name)


def test_wording_varies():
    rng = np.random.default_rng(3)
    assert len({random_caption(SURFER, BLUE, rng) for _ in range(200)}) > 40


def test_a_caption_that_came_with_the_clip_keeps_its_words():
    rng = np.random.default_rng(4)
    clip = make_clip(text="a red circle moves left, white background")
    assert {random_caption(clip, None, rng) for _ in range(20)} == {clip.text}
    assert all(clip.text in random_caption(clip, BLUE, rng) for _ in range(20))


def test_of_several_captions_each_is_told_as_often():
    clip = make_clip(text="a dog", alt_captions=("a pet", "fur"))
    assert canonical_caption(clip, None) == "a dog"
    rng = np.random.default_rng(0)
    told = [random_caption(clip, None, rng) for _ in range(3000)]
    assert {text: told.count(text) for text in set(told)} == {
        "a dog": pytest.approx(1000, abs=90),
        "a pet": pytest.approx(1000, abs=90),
        "fur": pytest.approx(1000, abs=90),
    }


def test_one_caption_costs_no_random_number():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert random_caption(make_clip(text="a dog"), None, rng) == "a dog"
    assert rng.bit_generator.state == before


def test_a_clip_without_a_caption_is_told_by_no_words():
    bare = make_clip()
    for behind in (None, Background("blue")):
        assert canonical_caption(bare, behind) == ""
        assert {random_caption(bare, behind, np.random.default_rng(seed)) for seed in range(9)} == {
            ""
        }

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magicvideo.data.backgrounds import Background, random_background
from magicvideo.data.captions import (
    BACKGROUND_LEFT_OUT,
    TONE_LEFT_OUT,
    canonical_caption,
    heldout_caption,
    random_caption,
    subject_phrase,
    usable_keywords,
)
from magicvideo.data.manifest import Attributes, ClipRecord
from magicvideo.data.sources.fluent_emoji import attributes_of, emoji_records
from magicvideo.errors import UserError

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
        activity="1f3c4",
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


def test_the_tone_is_added_to_the_other_attributes_of_the_name():
    (clip,) = [one for one in LISTED if one.name == "man: dark skin tone, curly hair"]
    caption = canonical_caption(make_clip(attributes_of(clip)), BLUE)
    assert caption == "man with curly hair, dark skin tone, blue background"


def test_canonical_captions_are_all_different():
    assert len({canonical_caption(make_clip(attributes_of(clip)), None) for clip in LISTED}) == 2014


def test_keywords_are_words_that_add_something():
    assert usable_keywords(SURFER.attributes) == ["beach", "ocean", "woman"]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(LISTED) - 1), st.integers(0, 10_000))
def test_varied_captions_are_deterministic_and_never_wrong(index, seed):
    clip = make_clip(attributes_of(LISTED[index]))
    background = random_background(np.random.default_rng(seed))
    for describe in (random_caption, heldout_caption):
        caption = describe(clip, background, np.random.default_rng(seed))
        assert caption == describe(clip, background, np.random.default_rng(seed))
        assert caption.strip(" ,") == caption
        assert not re.search(r",,|  | ,|[{}]|\ba [aeio]|\ban (?!hour)[^aeiouOX]", caption), caption
        if not clip.attributes.skin_tone:
            rest = caption.replace(subject_phrase(clip.attributes.base), "")
            assert not re.search(r"(?<!yellow )(?<!without )\bskin\b", rest)


def caption_counts(clip, words, count=3000):
    rng = np.random.default_rng(1)
    captions = [random_caption(clip, BLUE, rng) for _ in range(count)]
    return [sum(word in caption for caption in captions) / count for word in words]


def test_each_part_is_omitted_with_the_stated_probability():
    surfer, tone, background, keyword = caption_counts(
        SURFER, ["surf", "skin", "blue", "ocean"], 6000
    )
    assert tone == pytest.approx(1 - TONE_LEFT_OUT, abs=0.06)  # "tanned" names it without "skin"
    assert background == pytest.approx(1 - BACKGROUND_LEFT_OUT, abs=0.02)
    assert surfer > 0.7
    assert 0.01 < keyword < 0.2


def test_people_are_named_by_words_of_their_gender():
    rng = np.random.default_rng(2)
    captions = [random_caption(SURFER, None, rng) for _ in range(2000)]
    female = re.compile(r"\b(woman|lady|girl|female)\b")
    assert sum(bool(female.search(caption)) for caption in captions) > 0.9 * len(captions)
    male = re.compile(r"\b(man|guy|gentleman|male|dude)\b")
    assert not any(male.search(caption) for caption in captions)
    assert {found[1] for caption in captions if (found := female.search(caption))} == {
        "woman",
        "lady",
        "girl",
        "female",
    }


def test_the_emoji_judge_gets_the_right_words_and_articles():
    (record,) = [one for one in LISTED if one.name == "woman judge: medium skin tone"]
    clip, rng = make_clip(attributes_of(record)), np.random.default_rng(3)
    captions = [random_caption(clip, None, rng) for _ in range(1500)]
    assert not any("girl" in caption for caption in captions)
    assert any("an olive-skinned " in caption for caption in captions)
    assert any("a tanned " in caption for caption in captions)


def test_the_default_tone_is_named_only_if_there_are_other_tones():
    by_name = {one.name: make_clip(attributes_of(one)) for one in LISTED}
    rng = np.random.default_rng(4)
    hands = [random_caption(by_name["waving hand"], None, rng) for _ in range(1000)]
    assert sum("yellow" in caption for caption in hands) / 1000 == pytest.approx(0.1, abs=0.03)
    foxes = [random_caption(by_name["fox"], None, rng) for _ in range(1000)]
    assert not any("yellow" in caption for caption in foxes)


def test_every_emoji_has_phrases_and_held_out_ones_that_training_never_uses():
    seen, held = {}, {}
    for number, record in enumerate(LISTED):
        clip = make_clip(attributes_of(record))
        rng = np.random.default_rng(number)
        is_first = record.activity not in seen  # the others differ in tones and the like alone
        seen.setdefault(record.activity, set()).update(
            random_caption(clip, None, rng) for _ in range(30 if is_first else 3)
        )
        held.setdefault(record.activity, set()).add(heldout_caption(clip, None, rng))
    assert min(map(len, seen.values())) >= 5
    assert sum(len(held[activity] & seen[activity]) for activity in held) == 0


def test_held_out_captions_word_backgrounds_differently():
    rng = np.random.default_rng(5)
    anew = re.compile(r" behind$| set against plain |, placed on an? .* surface$")
    held = [heldout_caption(SURFER, BLUE, rng) for _ in range(100)]
    assert all(anew.search(caption) for caption in held)
    assert not any(anew.search(random_caption(SURFER, BLUE, rng)) for _ in range(2000))


def test_only_emoji_have_held_out_captions():
    with pytest.raises(UserError, match="no held-out paraphrases"):
        heldout_caption(make_clip(text="a dog"), None, np.random.default_rng(0))


def test_wording_varies():
    rng = np.random.default_rng(3)
    assert len({random_caption(SURFER, BLUE, rng) for _ in range(200)}) > 150


def test_a_caption_that_came_with_the_clip_keeps_its_words():
    rng = np.random.default_rng(4)
    clip = make_clip(text="a red circle moves left, white background")
    assert {random_caption(clip, None, rng) for _ in range(20)} == {clip.text}
    assert all(clip.text in random_caption(clip, BLUE, rng) for _ in range(20))


def test_several_captions_are_used_equally_often():
    clip = make_clip(text="a dog", alt_captions=("a pet", "fur"))
    assert canonical_caption(clip, None) == "a dog"
    rng = np.random.default_rng(0)
    told = [random_caption(clip, None, rng) for _ in range(3000)]
    assert {text: told.count(text) for text in set(told)} == {
        "a dog": pytest.approx(1000, abs=90),
        "a pet": pytest.approx(1000, abs=90),
        "fur": pytest.approx(1000, abs=90),
    }


def test_a_single_caption_uses_no_random_number():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert random_caption(make_clip(text="a dog"), None, rng) == "a dog"
    assert rng.bit_generator.state == before


def test_a_clip_without_a_caption_has_an_empty_caption():
    bare = make_clip()
    for behind in (None, Background("blue")):
        assert canonical_caption(bare, behind) == ""
        assert {random_caption(bare, behind, np.random.default_rng(seed)) for seed in range(9)} == {
            ""
        }

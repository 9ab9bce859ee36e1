"""Natural wordings of the emoji: complete, unambiguous, split into training and evaluation."""

import json
import re
from importlib.resources import files

import pytest

SOURCES = files("magicvideo.data.sources")


@pytest.fixture(scope="module")
def phrases():
    lines = (SOURCES / "fluent_emoji_phrases.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def emoji():
    lines = (SOURCES / "fluent_emoji_mit.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def words():
    return json.loads((SOURCES / "fluent_emoji_words.json").read_text(encoding="utf-8"))


def bare(phrase):
    """Lower case, without articles and punctuation: what makes two phrases the same request."""
    kept = re.sub(r"[^a-z0-9{}: ]", " ", phrase.lower())
    return " ".join(word for word in kept.split() if word not in {"a", "an", "the"})


def test_every_activity_has_training_phrases_and_two_held_out(phrases, emoji):
    assert {entry["activity"] for entry in phrases} == {clip["activity"] for clip in emoji}
    assert len(phrases) == len({entry["activity"] for entry in phrases})
    bases = {(clip["activity"], clip["base"]) for clip in emoji}
    for entry in phrases:
        assert (entry["activity"], entry["base"]) in bases
        assert 5 <= len(entry["phrases"]) <= 8, entry["base"]
        assert len(entry["heldout"]) == 2, entry["base"]


def test_no_phrase_means_two_activities_and_no_held_out_one_is_trained(phrases):
    owner = {}
    for entry in phrases:
        for phrase in entry["phrases"]:
            assert owner.setdefault(bare(phrase), entry["activity"]) == entry["activity"], phrase
    for entry in phrases:
        for phrase in entry["heldout"]:
            assert bare(phrase) not in owner, phrase


def test_placeholders_are_used_only_if_genders_differ(phrases, emoji, words):
    genders = {}
    for clip in emoji:
        genders.setdefault(clip["activity"], set()).add(clip["gender"])
    for entry in phrases:
        for phrase in entry["phrases"] + entry["heldout"]:
            slots = re.findall(r"\{(\w+)\}", phrase)
            assert set(slots) <= words.keys(), phrase
            assert not slots or len(genders[entry["activity"]]) > 1, phrase


def test_words_cover_every_gender_tone_and_background_colour(emoji, words):
    from magicvideo.data.backgrounds import COLOURS

    tones = {clip["skin_tone"] or "none" for clip in emoji}
    assert words["tone_before_who"].keys() == words["tone_after"].keys() == tones
    assert words["colours"].keys() == COLOURS.keys()
    assert all(name == spoken[0] for name, spoken in words["colours"].items())
    spoken = [word for names in words["colours"].values() for word in names]
    assert len(spoken) == len(set(spoken))
    for slot in ("who", "people", "gender"):
        assert words[slot].keys() == {"male", "female", "person"}

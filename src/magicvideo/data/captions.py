"""Captions of clips: one canonical wording, and natural ones for training.

Clips of emoji are described by parts (`Attributes`), and their captions are made of four: the
subject, in its official name, in a phrase that people would use, or in keywords; the skin tone; the
background; and the order of these. `sources/fluent_emoji_phrases.jsonl` has the phrases of every
activity, `sources/fluent_emoji_words.json` the words for people, tones, colours and backgrounds.
Both also have held-out wordings, which `heldout_caption` uses and training never sees.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from magicvideo.data.backgrounds import Background
from magicvideo.data.manifest import Attributes, ClipRecord
from magicvideo.data.sources.fluent_emoji import emoji_records
from magicvideo.errors import UserError

OFFICIAL_NAME = 0.3
"""Fraction of varied captions that use the official name, or keywords, and no phrase."""
KEYWORDS_ONLY = 0.15
"""Fraction of those that list keywords instead of the name."""
KEYWORDS_ADDED = 0.25
"""Fraction of those that list keywords after the name."""
TONE_LEFT_OUT = 0.1
YELLOW_NAMED = 0.1
"""Fraction of captions that name the default tone, yellow, where there are others."""
TONE_BEFORE_NOUN = 0.3
"""Fraction of tones that are named before the noun: "a dark-skinned man"."""
GENDER_ADDED = 0.7
"""Fraction of phrases without a word for the person ("surfer") to which one is added."""
BACKGROUND_LEFT_OUT = 0.15
BACKGROUND_CANONICAL = 0.3
BACKGROUND_FIRST = 0.1
"""Fraction of backgrounds that are named before the subject."""

Kind: TypeAlias = Literal["male", "female", "person"]

_GENDER_WORDS = {"male": "man", "female": "woman"}
_WITH_ARTICLE = ("man", "woman", "person")
_ARTICLE = 0.6  # fraction of phrases that begin with "a man" and not with "man"
_SLOT = re.compile(r"(\ban? )?\{who\}")
# where "someone" fits: "someone juggling", and not "someone student"
_SOMEONE = re.compile(r"\{who\} (\w+ing|who|whose|that|with|in|on|at|out|from)\b")


class _Phrases(BaseModel):
    """The wordings of one activity; `{who}`, `{people}` and `{gender}` are slots."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    activity: str
    base: str
    phrases: tuple[str, ...]
    heldout: tuple[str, ...]


class _BackgroundForms(BaseModel):
    """Wordings of a background, after the subject, before it, and for evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: tuple[str, ...]
    before: tuple[str, ...]
    heldout: tuple[str, ...]


class _Words(BaseModel):
    """The words for the slots of phrases, for tones and for backgrounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    who: dict[Kind, tuple[str, ...]]
    people: dict[Kind, tuple[str, ...]]
    gender: dict[Kind, tuple[str, ...]]
    who_without_article: tuple[str, ...]
    who_not_for: dict[str, tuple[str, ...]]
    """Words that do not fit activities of a prefix, such as "girl" and "judge"."""
    tone_before_who: dict[str, tuple[str, ...]]
    tone_after: dict[str, tuple[str, ...]]
    colours: dict[str, tuple[str, ...]]
    plain_background: _BackgroundForms
    gradient_background: _BackgroundForms


def subject_phrase(base: str) -> str:
    """Return the words for a base name: "man: curly hair" is a "man with curly hair".

    Names of emoji have hair after a colon; all others are used unchanged.
    """
    who, _, what = base.partition(": ")
    if not what:
        return base
    if what == "bald":
        return f"bald {who}"
    return f"{who} with a beard" if what == "beard" else f"{who} with {what}"


def canonical_caption(clip: ClipRecord, background: Background | None) -> str:
    """Return the canonical caption: "woman surfing, medium skin tone, blue background".

    It is empty for a clip without a caption, whatever the background: the empty text is that of
    unconditional samples.
    """
    if not clip.has_caption:
        return ""
    parts = [_canonical_subject(clip)]
    if clip.attributes and clip.attributes.skin_tone:
        parts.append(f"{clip.attributes.skin_tone} skin tone")
    if background:
        parts.append(background.phrase)
    return ", ".join(parts)


def random_caption(
    clip: ClipRecord, background: Background | None, rng: np.random.Generator
) -> str:
    """Return a caption in natural wording, a pure function of the arguments and the state of `rng`.

    Any part but the subject may be left out. A caption that came with the clip keeps its words;
    where several came, each is equally likely. A clip without one has the empty text, like those
    whose caption is dropped.
    """
    if not clip.has_caption:
        return ""
    known = clip.attributes
    caption = _describe(known, rng) if known else _draw_text(clip, rng)
    if background and rng.random() >= BACKGROUND_LEFT_OUT:
        caption = _add_background(caption, background, rng)
    return caption


def heldout_caption(
    clip: ClipRecord, background: Background | None, rng: np.random.Generator
) -> str:
    """Return a paraphrase whose words for subject and background training never uses.

    It names everything: the gender where the clip has one, the tone and the background.

    Raises:
        UserError: If there is none for the clip: only clips of emoji have paraphrases.
    """
    attributes = clip.attributes
    if attributes is None or attributes.activity not in _phrases():
        raise UserError(f"The clip {clip.id} has no held-out paraphrases; only emoji have.")
    words = _words()
    phrase = _pick(_phrases()[attributes.activity].heldout, rng)
    caption = _fill(phrase, attributes, "", rng, gender_added=1.0)
    if attributes.skin_tone:
        caption += _pick(words.tone_after[attributes.skin_tone], rng)
    if background:
        forms = words.gradient_background if background.second else words.plain_background
        caption += _background_text(_pick(forms.heldout, rng), background, rng)
    return caption


def usable_keywords(attributes: Attributes) -> list[str]:
    """Return the keywords that add something: words that are not the name itself."""
    return [
        word
        for word in attributes.keywords
        if len(word) > 2
        and word.replace(" ", "").replace("-", "").isalpha()
        and word.lower() != attributes.base.lower()
        and word not in _GENDER_WORDS
    ]


def _canonical_subject(clip: ClipRecord) -> str:
    return subject_phrase(clip.attributes.base) if clip.attributes else (clip.text or "")


def _draw_text(clip: ClipRecord, rng: np.random.Generator) -> str:
    texts = (_canonical_subject(clip), *clip.alt_captions)
    # no random number is drawn without a choice, so runs with one caption per clip do not change
    return texts[rng.integers(len(texts))] if len(texts) > 1 else texts[0]


def _describe(attributes: Attributes, rng: np.random.Generator) -> str:
    """Return words for the subject and its skin tone."""
    words, known = _words(), _phrases().get(attributes.activity)
    tone = attributes.skin_tone
    if tone and rng.random() < TONE_LEFT_OUT:
        tone = None
    elif not tone and attributes.activity in _toned_activities() and rng.random() < YELLOW_NAMED:
        tone = "none"
    if known is None or rng.random() < OFFICIAL_NAME:
        caption, before = _official_subject(attributes, rng), ""
    else:
        phrase = _pick(known.phrases, rng)
        is_before = tone and "{who}" in phrase and rng.random() < TONE_BEFORE_NOUN
        before = _pick(words.tone_before_who[tone], rng) if tone and is_before else ""
        caption = _fill(phrase, attributes, before, rng, gender_added=GENDER_ADDED)
    return caption if before or not tone else caption + _pick(words.tone_after[tone], rng)


def _official_subject(attributes: Attributes, rng: np.random.Generator) -> str:
    """Return the official name, with keywords after it or instead of it in some captions."""
    name = subject_phrase(attributes.base)
    keywords = usable_keywords(attributes)
    kind = rng.random()
    if kind < KEYWORDS_ONLY and len(keywords) > 2:
        chosen = _choose(keywords, 2 + int(rng.integers(3)), rng)
        who = _GENDER_WORDS.get(attributes.gender or "")
        return ", ".join(chosen if who is None or who in chosen else [who, *chosen])
    if rng.random() < 0.3 and name.split()[0] in _WITH_ARTICLE:
        name = f"a {name}"
    if kind < KEYWORDS_ONLY + KEYWORDS_ADDED:
        said = name.lower().split()
        further = [word for word in keywords if word.lower() not in said]
        return ", ".join([name, *_choose(further, 1 + int(rng.integers(2)), rng)])
    return name


def _fill(
    phrase: str,
    attributes: Attributes,
    tone: str,
    rng: np.random.Generator,
    *,
    gender_added: float,
) -> str:
    """Return a phrase with words in its slots.

    Args:
        phrase: With or without slots.
        attributes: Of the clip.
        tone: Words for the skin before the person, or nothing.
        rng: Source of every choice.
        gender_added: Fraction of phrases without a slot that get a word for the person, where the
            activity exists with other genders, too.
    """
    words = _words()
    kind: Kind = "person"
    if attributes.gender in ("male", "female"):
        kind = "male" if attributes.gender == "male" else "female"
    unfit = {
        word
        for prefix, unfit_words in words.who_not_for.items()
        if attributes.activity.startswith(prefix)
        for word in unfit_words
    }
    if tone or not _SOMEONE.match(phrase):
        unfit |= set(words.who_without_article)
    who = _pick([word for word in words.who[kind] if word not in unfit], rng)
    if phrase.startswith("{who}") and who not in words.who_without_article:
        phrase = f"a {phrase}" if rng.random() < _ARTICLE else phrase
    has_person = any(slot in phrase for slot in ("{who}", "{people}", "{gender}"))
    is_one_of_several = attributes.activity in _gendered_activities()
    if not has_person and kind != "person" and is_one_of_several and rng.random() < gender_added:
        forms = [f"{who}, {phrase}", f"{phrase}, {who}"]
        if not phrase.startswith(("a ", "an ", "the ")):
            forms.append(f"{_pick(words.gender[kind], rng)} {phrase}")
        phrase = _pick(forms, rng)
    noun = f"{tone} {who}" if tone else who
    phrase = _SLOT.sub(lambda found: f"{_article(noun)} {noun}" if found[1] else noun, phrase)
    phrase = phrase.replace("{people}", _pick(words.people[kind], rng))
    phrase = phrase.replace("{gender}", _pick(words.gender[kind], rng))
    return " ".join(phrase.split())


def _add_background(caption: str, background: Background, rng: np.random.Generator) -> str:
    forms = _words().gradient_background if background.second else _words().plain_background
    kind = rng.random()
    if kind < BACKGROUND_CANONICAL:
        return f"{caption}, {background.phrase}"
    if kind < BACKGROUND_CANONICAL + BACKGROUND_FIRST:
        return _background_text(_pick(forms.before, rng), background, rng) + caption
    return caption + _background_text(_pick(forms.after, rng), background, rng)


def _background_text(form: str, background: Background, rng: np.random.Generator) -> str:
    """Return a wording with the names of colours in it, half of them the canonical ones."""
    names = []
    for colour in (background.colour, background.second or background.colour):
        is_canonical = rng.random() < 0.5
        names.append(colour if is_canonical else _pick(_words().colours[colour], rng))
    first, second = names
    with_article = f"{_article(first)} {first}"
    slots = {"colour": first, "a_colour": with_article, "first": first, "second": second}
    return form.format(**slots, a_first=with_article)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _choose(words: list[str], count: int, rng: np.random.Generator) -> list[str]:
    order = rng.permutation(len(words))[:count]
    return [words[place] for place in order]


@lru_cache(maxsize=1)
def _phrases() -> dict[str, _Phrases]:
    """Return the wordings by activity."""
    lines = _resource("fluent_emoji_phrases.jsonl").splitlines()
    return {entry.activity: entry for entry in map(_Phrases.model_validate_json, lines)}


@lru_cache(maxsize=1)
def _words() -> _Words:
    return TypeAdapter(_Words).validate_python(json.loads(_resource("fluent_emoji_words.json")))


@lru_cache(maxsize=1)
def _toned_activities() -> frozenset[str]:
    """Return the activities that exist in several skin tones."""
    return frozenset(record.activity for record in emoji_records() if record.skin_tone)


@lru_cache(maxsize=1)
def _gendered_activities() -> frozenset[str]:
    """Return the activities that exist with several genders, or with one and with none."""
    pairs = {(record.activity, record.gender) for record in emoji_records()}
    counts = Counter(activity for activity, _ in pairs)
    return frozenset(activity for activity, count in counts.items() if count > 1)


def _resource(name: str) -> str:
    return (files("magicvideo.data.sources") / name).read_text(encoding="utf-8")

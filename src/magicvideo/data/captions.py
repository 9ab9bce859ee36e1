"""Captions of clips: one canonical wording, and varied ones for training."""

import numpy as np

from magicvideo.data.backgrounds import Background
from magicvideo.data.manifest import Attributes, ClipRecord

KEYWORDS_ONLY = 0.15
"""Share of varied captions that say keywords instead of the name."""
KEYWORDS_ADDED = 0.25
"""Share of varied captions that say keywords after the name."""
TONE_LEFT_OUT = 0.1
BACKGROUND_LEFT_OUT = 0.15

_GENDER_WORDS = {"male": "man", "female": "woman"}
_WITH_ARTICLE = ("man", "woman", "person")


def subject_phrase(base: str) -> str:
    """Return the words for a base name: "man: curly hair" is a "man with curly hair".

    Names of emoji put hair after a colon; everything else is said as it stands.
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
    parts = [_known_text(clip)]
    if clip.attributes and clip.attributes.skin_tone:
        parts.append(f"{clip.attributes.skin_tone} skin tone")
    if background:
        parts.append(background.phrase)
    return ", ".join(parts)


def random_caption(
    clip: ClipRecord, background: Background | None, rng: np.random.Generator
) -> str:
    """Return a caption in varied wording; the same state of `rng` gives the same words.

    Any part but the subject may be left out. A caption that came with the clip keeps its words;
    where several came, each is as likely. A clip without one has the empty text, like those whose
    caption is dropped.
    """
    if not clip.has_caption:
        return ""
    parts = [_vary_subject(clip.attributes, rng) if clip.attributes else _draw_text(clip, rng)]
    tone = clip.attributes.skin_tone if clip.attributes else None
    if tone and rng.random() >= TONE_LEFT_OUT:
        parts.append((", {} skin tone", " with {} skin tone", ", {} skin")[rng.integers(3)])
        parts[-1] = parts[-1].format(tone)
    if background and rng.random() >= BACKGROUND_LEFT_OUT:
        _add_background(parts, background, rng)
    return "".join(parts)


def usable_keywords(attributes: Attributes) -> list[str]:
    """Return the keywords that say something: words that are not the name itself."""
    return [
        word
        for word in attributes.keywords
        if len(word) > 2
        and word.replace(" ", "").replace("-", "").isalpha()
        and word.lower() != attributes.base.lower()
        and word not in _GENDER_WORDS
    ]


def _known_text(clip: ClipRecord) -> str:
    return subject_phrase(clip.attributes.base) if clip.attributes else (clip.text or "")


def _draw_text(clip: ClipRecord, rng: np.random.Generator) -> str:
    texts = (_known_text(clip), *clip.alt_captions)
    # No draw where there is no choice, so that a run with one caption a clip repeats as before
    return texts[rng.integers(len(texts))] if len(texts) > 1 else texts[0]


def _vary_subject(attributes: Attributes, rng: np.random.Generator) -> str:
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


def _choose(words: list[str], count: int, rng: np.random.Generator) -> list[str]:
    order = rng.permutation(len(words))[:count]
    return [words[place] for place in order]


def _add_background(parts: list[str], background: Background, rng: np.random.Generator) -> None:
    article = "an" if background.name[0] in "aeiou" else "a"
    form = rng.integers(8)
    if form < 4:
        parts.append(f", {background.phrase}")
    elif form < 6:
        parts.append(f" on {article} {background.phrase}")
    elif form < 7:
        parts.append(f" against {article} {background.phrase}")
    else:
        parts.insert(0, f"{background.phrase}, ")

"""The contents of a source: clips with their split, skipped files, and the rules of splits."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magicvideo.data.manifest import Attributes, Split
from magicvideo.errors import UserError
from magicvideo.media.video_reader import TimeRange

COMBINATION_RULE = (
    "Held out: the pairs of base and skin tone (the default tone is one) whose SHA-256 is 0 modulo "
    "10, among bases that come in several tones; a pair is not held out where its base or its tone "
    "would be unseen in training. Everything else trains."
)

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("heldout", "test", "testing", "eval", "evaluation"), "heldout"),
}
"""Names of splits in data sets, and the split that each means here."""


@dataclass(frozen=True)
class SourceClip:
    """A file, or a part of one, that becomes a clip when it is decoded."""

    id: str
    file: str
    """Its path inside the source, in a form that can be printed."""
    path: Path
    split: Split
    loops: bool
    """Whether the first frame may follow the last."""
    text: str | None = None
    alt_captions: tuple[str, ...] = ()
    attributes: Attributes | None = None
    frames: int | None = None
    """Number of frames by the source's own list; another number is an error."""
    span: TimeRange | None = None
    """The part of the file that the clip is; None for all of it."""
    longest_scene: bool = False
    """Whether the clip is only its longest stretch without a cut."""


@dataclass(frozen=True)
class SkippedFile:
    """A file that becomes no clip, and the reason."""

    file: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A data set before preparation."""

    name: str
    folder: Path
    licence: str
    split_rule: str
    clips: list[SourceClip]
    skipped: list[SkippedFile]


def with_unique_ids(clips: list[SourceClip]) -> list[SourceClip]:
    """Give clips whose files differ only in their suffix (a.mp4, a.gif) ids with the suffix."""
    count = Counter(clip.id for clip in clips)
    return [
        clip if count[clip.id] == 1 else replace(clip, id=clip.id + clip.path.suffix)
        for clip in clips
    ]


def heldout_combinations(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Choose about one in ten of the pairs of base and tone, each part of which stays in training.

    A pair's side depends on its own hash and on the pairs with the same base or tone alone.

    Args:
        pairs: Every pair that exists, each once, of bases that come in several tones.
    """
    heldout: set[tuple[str, str]] = set()
    bases, tones = Counter(base for base, _ in pairs), Counter(tone for _, tone in pairs)
    for base, tone in sorted(pairs):
        if _hash(f"{base}|{tone}") % 10 == 0 and bases[base] > 1 and tones[tone] > 1:
            heldout.add((base, tone))
            bases[base] -= 1
            tones[tone] -= 1
    return heldout


def parse_split(name: Any, where: str) -> Split:  # noqa: ANN401 (any JSON value)
    """Return the split that a list calls by a name.

    Raises:
        UserError: If the name is unknown; `where` is its place in the list.
    """
    if not isinstance(name, str) or name.lower() not in SPLIT_NAMES:
        raise UserError(
            f"{where}: split {name!r} is none of train, validation, test and heldout; correct it."
        )
    return SPLIT_NAMES[name.lower()]


def check_holdout(holdout: float) -> None:
    """Check the fraction of clips to hold out.

    Raises:
        UserError: If it is not from 0 to below 1.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout {holdout} is not a fraction; give a number from 0 to below 1.")


def holdout_description(holdout: float, what: str) -> str:
    """Return the end of the sentence on held-out clips: "", or ", and 0.1 of the other ..."."""
    return f", and {holdout:g} of {what} by the SHA-256 of their id" if holdout else ""


def split_by_hash(clip_id: str, holdout: float) -> Split:
    """Return the split of an id: a fraction `holdout` of all possible ids is held out.

    It never depends on which other clips are there.
    """
    return "heldout" if _hash(clip_id) % 10_000 < holdout * 10_000 else "train"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

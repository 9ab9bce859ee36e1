"""What every source says of itself: the clips it offers, and the files it leaves out."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from magicvideo.data.manifest import Attributes, Split
from magicvideo.media.time_ranges import Span


@dataclass(frozen=True)
class Candidate:
    """A file, or a part of one, that is to become a clip."""

    id: str
    file: str
    """Its path inside the source, as it is shown."""
    path: Path
    split: Split
    loops: bool
    """Whether the first frame may follow the last."""
    text: str | None = None
    other_texts: tuple[str, ...] = ()
    attributes: Attributes | None = None
    frames: int | None = None
    """How many the source says there are."""
    span: Span | None = None
    """The part of the file that the clip is; None for all of it."""
    longest_scene: bool = False
    """Whether the clip is only its longest stretch without a cut."""


@dataclass(frozen=True)
class Skipped:
    """A file that becomes no clip, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A data set before preparation."""

    name: str
    folder: Path
    licence: str
    split_rule: str
    candidates: list[Candidate]
    skipped: list[Skipped]


def with_unique_ids(candidates: list[Candidate]) -> list[Candidate]:
    """Give clips that differ in their suffix alone (a.mp4, a.gif) ids with the suffix."""
    count = Counter(one.id for one in candidates)
    return [
        one if count[one.id] == 1 else replace(one, id=one.id + one.path.suffix)
        for one in candidates
    ]

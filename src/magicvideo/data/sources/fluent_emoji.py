"""Fluent animated emoji by Microsoft (MIT): 2,014 short clips with transparency and attributes.

`fluent_emoji_mit.jsonl` next to this module lists them. The clips come from the npm packages
`@lobehub/fluent-emoji-anim-1` to `-4` (1.0.0), of which it keeps those that Microsoft publishes
itself, in https://github.com/microsoft/fluentui-emoji-animated, matched by code points. Names,
groups and part of the keywords are those of npm `emojibase-data` 17.0.0 (MIT, Miles Johnson), the
other keywords those of npm `emojilib` 4.0.3 (MIT, Mu-An Chiou). `package` says which of the four
packages holds the file, `sha256` what it must be.
"""

from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from magicvideo.data.manifest import Attributes
from magicvideo.data.sources.source import (
    COMBINATION_RULE,
    SkippedFile,
    Source,
    SourceClip,
    heldout_combinations,
)
from magicvideo.errors import UserError

NAME = "fluent-emoji"
CLIPS = "clips"
MARKER = "fluent-emoji.txt"
"""File by which a fetched folder is known; it holds the licence notice."""

NOTICE = """Fluent animated emoji, https://github.com/microsoft/fluentui-emoji-animated

MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE
"""


class EmojiRecord(BaseModel):
    """One line of the shipped list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    """Code points in hexadecimal, joined by hyphens: the name of the file."""
    name: str
    base: str
    group: str
    subgroup: str
    keywords: tuple[str, ...]
    skin_tone: str | None
    gender: str | None
    activity: str
    frames: int
    package: int
    sha256: str


def emoji_records() -> list[EmojiRecord]:
    """Return the shipped list."""
    text = (files(__package__) / "fluent_emoji_mit.jsonl").read_text(encoding="utf-8")
    return [EmojiRecord.model_validate_json(line) for line in text.splitlines()]


def matches(folder: Path) -> bool:
    """Return whether a folder was fetched."""
    return (folder / MARKER).is_file()


def scan(folder: Path) -> Source:
    """Return the clips of a fetched folder; those that are missing are skipped with a reason.

    Raises:
        UserError: If it was not fetched.
    """
    if not matches(folder):
        raise UserError(
            f"{folder} has no {MARKER}, so it holds no fetched emoji; get them with "
            f"`magicvideo data fetch {NAME} {folder}`."
        )
    listed = emoji_records()
    heldout = _heldout(listed)
    present = {path.stem: path for path in (folder / CLIPS).glob("*.webp")}
    candidates = [
        SourceClip(
            id=clip.code,
            file=f"{CLIPS}/{clip.code}.webp",
            path=present[clip.code],
            split="heldout" if _pair(clip) in heldout else "train",
            loops=True,
            attributes=attributes_of(clip),
            frames=clip.frames,
        )
        for clip in listed
        if clip.code in present
    ]
    skipped = [
        SkippedFile(f"{CLIPS}/{clip.code}.webp", "missing; fetch it with `magicvideo data fetch`")
        for clip in listed
        if clip.code not in present
    ]
    foreign = sorted(set(present) - {clip.code for clip in listed})
    skipped += [
        SkippedFile(f"{CLIPS}/{code}.webp", "not in the list of MIT clips") for code in foreign
    ]
    licence = "MIT, Copyright (c) Microsoft Corporation"
    return Source(NAME, folder, licence, COMBINATION_RULE, candidates, skipped)


def attributes_of(clip: EmojiRecord) -> Attributes:
    """Return the attributes of a clip in the manifest."""
    known = clip.model_dump(include=set(Attributes.model_fields))
    return Attributes.model_validate(known)


def _heldout(listed: list[EmojiRecord]) -> set[tuple[str, str]]:
    in_tones = {clip.base for clip in listed if clip.skin_tone}
    return heldout_combinations([_pair(clip) for clip in listed if clip.base in in_tones])


def _pair(clip: EmojiRecord) -> tuple[str, str]:
    return clip.base, clip.skin_tone or "default"

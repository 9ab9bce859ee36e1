"""Which source a folder is: every layout that is read, and how it is known."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from magicvideo.data.sources import (
    clip_list,
    fluent_emoji,
    folder,
    msr_vtt,
    ucf101,
    videofolder,
    webvid,
)
from magicvideo.data.sources.source import Source
from magicvideo.errors import UserError

_Find: TypeAlias = Callable[[Path, float], Source]


@dataclass(frozen=True)
class Layout:
    """How the clips of one kind of data set lie in a folder."""

    name: str
    is_here: Callable[[Path], bool]
    find_clips: _Find
    """Takes the folder and the share of clips to be held out."""


def layouts() -> list[Layout]:
    """Return every layout; the first that is here counts, and the last is always here."""
    return [
        Layout(
            fluent_emoji.NAME,
            fluent_emoji.is_here,
            _with_own_split(fluent_emoji.NAME, fluent_emoji.find_clips),
        ),
        Layout(msr_vtt.NAME, msr_vtt.is_here, _with_own_split(msr_vtt.NAME, msr_vtt.find_clips)),
        Layout(ucf101.NAME, ucf101.is_here, _with_own_split(ucf101.NAME, ucf101.find_clips)),
        Layout(webvid.NAME, webvid.is_here, webvid.find_clips),
        Layout(clip_list.NAME, clip_list.is_here, clip_list.find_clips),
        Layout(videofolder.NAME, videofolder.is_here, videofolder.find_clips),
        Layout(folder.NAME, lambda _: True, folder.find_clips),
    ]


def open_source(
    path: Path, holdout: float = 0.0, *, kind: str | None = None, longest_scene: bool = False
) -> Source:
    """Return the source that lies in a folder.

    Args:
        path: The folder.
        holdout: Share of the clips that training does not see, of sources without an own split.
        kind: Name of its layout; None finds it out.
        longest_scene: Whether a clip is only its longest stretch without a cut.

    Raises:
        UserError: If it is no folder, holds no clips in that layout, or a list of them is broken.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name one with clips in it.")
    source = _layout(path, kind).find_clips(path, holdout)
    if not source.candidates and not source.skipped:
        raise UserError(f"{path} holds no file; put videos with captions into it.")
    if longest_scene:
        chosen = [replace(one, longest_scene=True) for one in source.candidates]
        return replace(source, candidates=chosen)
    return source


def _layout(path: Path, kind: str | None) -> Layout:
    known = {layout.name: layout for layout in layouts()}
    if kind is None:
        return next(layout for layout in known.values() if layout.is_here(path))
    if kind not in known:
        raise UserError(f"--source {kind!r} is not known; take {', '.join(known)}.")
    return known[kind]


def _with_own_split(name: str, find: Callable[[Path], Source]) -> _Find:
    def find_clips(path: Path, holdout: float) -> Source:
        if holdout:
            raise UserError(
                f"--holdout is for sources without a split of their own, which {name} has."
            )
        return find(path)

    return find_clips

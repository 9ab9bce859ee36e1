"""All layouts of data sets that are read, and how the layout of a folder is found."""

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

_Scan: TypeAlias = Callable[[Path, float], Source]


@dataclass(frozen=True)
class Layout:
    """The layout of one kind of data set in a folder."""

    name: str
    matches: Callable[[Path], bool]
    scan: _Scan
    """Takes the folder and the fraction of clips to hold out."""


def layouts() -> list[Layout]:
    """Return every layout; the first that matches counts, and the last always does."""
    return [
        Layout(
            fluent_emoji.NAME,
            fluent_emoji.matches,
            _with_own_split(fluent_emoji.NAME, fluent_emoji.scan),
        ),
        Layout(msr_vtt.NAME, msr_vtt.matches, _with_own_split(msr_vtt.NAME, msr_vtt.scan)),
        Layout(ucf101.NAME, ucf101.matches, _with_own_split(ucf101.NAME, ucf101.scan)),
        Layout(webvid.NAME, webvid.matches, webvid.scan),
        Layout(clip_list.NAME, clip_list.matches, clip_list.scan),
        Layout(videofolder.NAME, videofolder.matches, videofolder.scan),
        Layout(folder.NAME, lambda _: True, folder.scan),
    ]


def open_source(
    path: Path, holdout: float = 0.0, *, kind: str | None = None, longest_scene: bool = False
) -> Source:
    """Return the source that lies in a folder.

    Args:
        path: The folder.
        holdout: Fraction of the clips that training does not see, of sources without an own split.
        kind: Name of its layout; None detects it.
        longest_scene: Whether a clip is only its longest stretch without a cut.

    Raises:
        UserError: If it is not a folder, has no clips in that layout, or a list is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name one with clips in it.")
    source = _layout(path, kind).scan(path, holdout)
    if not source.clips and not source.skipped:
        raise UserError(f"{path} holds no file; put videos with captions into it.")
    if longest_scene:
        chosen = [replace(one, longest_scene=True) for one in source.clips]
        return replace(source, clips=chosen)
    return source


def _layout(path: Path, kind: str | None) -> Layout:
    known = {layout.name: layout for layout in layouts()}
    if kind is None:
        return next(layout for layout in known.values() if layout.matches(path))
    if kind not in known:
        raise UserError(f"--source {kind!r} is not known; take {', '.join(known)}.")
    return known[kind]


def _with_own_split(name: str, scan_folder: Callable[[Path], Source]) -> _Scan:
    def scan(path: Path, holdout: float) -> Source:
        if holdout:
            raise UserError(
                f"--holdout is for sources without a split of their own, which {name} has."
            )
        return scan_folder(path)

    return scan

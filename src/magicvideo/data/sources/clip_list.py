"""Lists of clips within long videos, as in HD-VILA-100M: video, start and end.

A list is a JSON Lines file, or a JSON file with one list, at the top of the folder. Its entries are
one clip each:

    {"video_id": "QMi8", "start": 17.759, "end": "00:00:23.279", "caption": "a dog runs"}

or all clips of one video, HD-VILA's own form:

    {"video_id": "QMi8", "clip": [{"clip_id": "QMi8.1.mp4", "span": ["00:00:17.759", "23.279"]}]}

Times are seconds or HH:MM:SS.mmm. A clip may have an id (`clip_id`), a caption (`caption` or
`text`, one or a list of them) and a `split`. Videos lie anywhere below the folder, named by their
id. Xue et al., Advancing High-Resolution Video-Language Representation with Large-Scale Video
Transcriptions, https://arxiv.org/abs/2111.10337
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magicvideo.data.manifest import Split
from magicvideo.data.sources.annotation_list import AnnotatedClips, Row, read_rows
from magicvideo.data.sources.source import (
    Source,
    check_holdout,
    holdout_description,
    parse_split,
    split_by_hash,
)
from magicvideo.errors import UserError
from magicvideo.media.video_reader import VIDEO_SUFFIXES, TimeRange

NAME = "clip-list"
LICENCE = "not stated; the owners of the videos decide"

_OTHERS = ("metadata.jsonl", "metadata.json")
_EXAMPLE = '{"video_id": "x", "start": 1.5, "end": "00:00:04.000"}'


def matches(folder: Path) -> bool:
    """Return whether a folder has this layout, from the first entry of every list."""
    for path in _lists(folder):
        try:
            first = next(read_rows(path), None)
        except UserError:
            continue
        if first and "video_id" in first[1] and {"start", "span", "clip"} & first[1].keys():
            return True
    return False


def scan(folder: Path, holdout: float = 0.0) -> Source:
    """Return the clips of all lists at the top of a folder.

    Args:
        folder: Where the lists are.
        holdout: Fraction of the videos, by the hash of their id, whose clips are held out. Clips
            whose entry names a split other than train follow that.

    Raises:
        UserError: If a list is missing or damaged, or none of its videos exists.
    """
    check_holdout(holdout)
    lists = _lists(folder)
    wanted = f".jsonl or .json list of clips at its top, with entries such as {_EXAMPLE}"
    clips = AnnotatedClips.from_lists(folder, lists, wanted)
    for path in lists:
        for where, entry in read_rows(path):
            place = f"{path.name}, {where}"
            for row in _clips_of(entry, place):
                _add(clips, row, place, holdout)
    rule = "Held out: clips that the list names so"
    if holdout:
        rule += holdout_description(holdout, "the other videos")
    return clips.source(NAME, LICENCE, f"{rule}.")


def parse_time(value: Any) -> float | None:  # noqa: ANN401 (whatever a list holds)
    """Return seconds for a number, "17.759", "04:17.759" or "00:04:17.759"; None if not a time.

    Minutes and seconds after a colon are below 60.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parts = [float(part) for part in str(value).split(":")]
    except ValueError:
        return None
    is_time = len(parts) <= 3 and all(map(math.isfinite, parts))
    if not is_time or any(not 0 <= part < 60 for part in parts[1:]):
        return None
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def _lists(folder: Path) -> list[Path]:
    found = [path for pattern in ("*.jsonl", "*.json") for path in folder.glob(pattern)]
    return sorted(path for path in found if path.is_file() and path.name not in _OTHERS)


def _clips_of(entry: Row, place: str) -> Iterator[Row]:
    """Yield an entry, or each clip within it with what the entry says of all."""
    if "clip" not in entry:
        yield entry
        return
    inner = entry["clip"]
    if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
        raise UserError(f"{place}: `clip` is not a list of objects; correct it.")
    shared = {key: value for key, value in entry.items() if key != "clip"}
    yield from ({**shared, **one} for one in inner)


def _add(clips: AnnotatedClips, row: Row, place: str, holdout: float) -> None:
    video = row.get("video_id")
    if not isinstance(video, str) or not video:
        raise UserError(
            f"{place} has no video_id (it has {', '.join(row)}); an entry is such as {_EXAMPLE}."
        )
    span = _span(row, place)
    clips.add(
        _clip_id(row, video, span),
        [video],
        _split(row, video, place, holdout),
        _captions(row, place),
        where=place,
        span=span,
        needs_caption=False,
    )


def _span(row: Row, place: str) -> TimeRange:
    values = row["span"] if "span" in row else [row.get("start"), row.get("end")]
    times = list(map(parse_time, values)) if isinstance(values, list) else []
    if len(times) != 2 or times[0] is None or times[1] is None:
        raise UserError(
            f"{place}: {values!r} is not a start and an end in seconds or HH:MM:SS.mmm; correct it."
        )
    return times[0], times[1]


def _clip_id(row: Row, video: str, span: TimeRange) -> str:
    given = row.get("clip_id")
    if not isinstance(given, str) or not given:
        return f"{video}_{span[0]:.3f}_{span[1]:.3f}"
    suffix = Path(given).suffix
    return given.removesuffix(suffix) if suffix.lower() in VIDEO_SUFFIXES else given


def _captions(row: Row, place: str) -> list[str]:
    given = row.get("caption", row.get("text")) or []
    captions = [given] if isinstance(given, str) else given
    if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
        raise UserError(f"{place}: the caption is neither a text nor a list of texts; correct it.")
    return captions


def _split(row: Row, video: str, place: str, holdout: float) -> Split:
    split = parse_split(row.get("split") or "train", place)
    return split_by_hash(video, holdout) if split == "train" else split

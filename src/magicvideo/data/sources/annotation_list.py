"""Lists of clips (CSV, JSON Lines and JSON), and the clips that they name."""

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from magicvideo.data.manifest import Split
from magicvideo.data.sources.source import SkippedFile, Source, SourceClip
from magicvideo.data.sources.video_index import (
    VideoIndex,
    display_path,
    is_utf8,
    summarize_folder,
)
from magicvideo.data.text_files import TextFileError, iter_lines, read_text
from magicvideo.errors import UserError
from magicvideo.media.video_reader import TimeRange
from magicvideo.printable import printable

Row: TypeAlias = dict[str, Any]

FILE_COLUMNS = ("file_name", "video", "video_path", "file_path", "file", "path")
"""Names that data sets give to the column of files; the first that a row has counts."""
CAPTION_COLUMNS = ("text", "caption", "prompt", "captions", "cap")
"""Names that data sets give to the column of captions."""

MAX_CAPTION = 20_000
"""Longest caption in characters; text encoders read some hundred."""

_DELIMITERS = ",;\t"  # Excel writes semicolons where the comma is the decimal sign
_WORD_BORDER = re.compile(r"[\s_-]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def label_to_prompt(label: str) -> str:
    """Return the words of a class name in lower case: "ApplyEyeMakeup" is "apply eye makeup".

    Words end at spaces, underscores and hyphens, before a capital that follows a small letter or a
    digit, and before the last of several capitals: "TVShow_2" becomes "tv show 2".
    """
    return " ".join(word.lower() for word in _WORD_BORDER.split(label) if word)


def normalize_caption(caption: str) -> str:
    """Return a caption on one line, without spaces at its ends."""
    return " ".join(caption.split())


def check_caption(caption: str) -> str | None:
    """Return why a normalised caption cannot be used, or None if it can."""
    if not caption:
        return "its caption is empty"
    if not is_utf8(caption):
        return "its caption is not UTF-8 text"
    if any(unicodedata.category(char) == "Cc" for char in caption):
        return "its caption has control characters, as binary files have"
    if len(caption) > MAX_CAPTION:
        return f"its caption has {len(caption):,} characters, more than {MAX_CAPTION:,}"
    return None


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a .csv, .jsonl or .json file, each with its place, such as "line 3".

    A JSON file holds one list of objects, or one object for each clip under the clip's name, which
    becomes its `file_name`. A .json file with one object a line, and a .jsonl file with one list,
    are read by their content. CSV and JSON Lines are read as they are needed.

    Raises:
        UserError: If the file is not UTF-8, or a row is broken; the place is in the message.
    """
    try:
        if path.suffix.lower() == ".csv":
            yield from _read_csv(path)
        elif _is_json_lines(path):
            yield from _read_json_lines(path)
        else:
            yield from _read_json_list(path)
    except TextFileError as error:
        raise UserError(f"{path} {error}.") from None


def read_json(path: Path) -> Any:  # noqa: ANN401 (any JSON value)
    """Return the content of a JSON file.

    Raises:
        UserError: If it is not JSON; the line is in the message.
    """
    try:
        return json.loads(read_text(path))
    except TextFileError as error:
        raise UserError(f"{path} {error}.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno} is not JSON ({error.msg}); correct that line."
        ) from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise UserError(f"{path} is nested too deeply or holds numbers without end.") from None


def text_column(path: Path, where: str, row: Row, columns: Sequence[str]) -> str:
    """Return the name of the first of some columns that a row has a text, or texts, in.

    Raises:
        UserError: If it has none; the message names the columns that are read.
    """
    for column in columns:
        value = row.get(column)
        values = value if isinstance(value, list) and value else [value]
        if all(isinstance(one, str) for one in values):
            return column
    for column in columns:
        if column in row:
            value = json.dumps(row[column])
            raise UserError(
                f"{path}, {where}: {column} is {value:.60}, which is not text; correct it."
            )
    raise UserError(
        f"{path}, {where} has no {columns[0]} (it has "
        f"{', '.join(printable(str(name)) for name in row)}); every line needs a text in "
        f"{columns[0]}{' or one of ' + ', '.join(columns[1:]) if columns[1:] else ''}."
    )


def captions_of_row(row: Row, column: str) -> list[str]:
    """Return the captions in a column, one or a list of them, normalised and without empty ones."""
    value = row[column]
    captions = [value] if isinstance(value, str) else value
    return [text for text in map(normalize_caption, captions) if text]


def csv_columns(path: Path) -> list[str]:
    """Return the heading of a CSV file, or nothing if it has none that can be read."""
    try:
        return _clean_heading(next(csv.reader(iter_lines(path), delimiter=_delimiter(path)), []))
    except (TextFileError, csv.Error):
        return []


class AnnotatedClips:
    """The clips of one source, collected entry by entry from its lists.

    Args:
        folder: The source; videos are looked for in all of it.
        lists: The names of the lists, for messages.
    """

    def __init__(self, folder: Path, lists: str) -> None:
        self._folder, self._lists = folder, lists
        self._videos = VideoIndex(folder)
        self._clips: dict[str, SourceClip] = {}
        self._skipped: list[SkippedFile] = []
        self._missing: list[str] = []

    @classmethod
    def from_lists(cls, folder: Path, lists: Sequence[Path], wanted: str) -> "AnnotatedClips":
        """Return an empty collection for the lists of a folder.

        Args:
            folder: The source.
            lists: The lists that were found in it.
            wanted: What was looked for, and where.

        Raises:
            UserError: If the list is missing.
        """
        if not lists:
            raise UserError(f"{folder} has no {wanted}; {summarize_folder(folder)}.")
        return cls(folder, ", ".join(printable(path.name) for path in lists))

    def add(
        self,
        clip_id: str,
        names: Sequence[str],
        split: Split,
        captions: Sequence[str],
        *,
        where: str,
        span: TimeRange | None = None,
        needs_caption: bool = True,
    ) -> None:
        """Add an entry, or record why it becomes no clip.

        Args:
            clip_id: Its id, which no other entry has.
            names: What its video may be called, the likeliest first.
            split: The split of the clip.
            captions: All captions of the clip.
            where: Its place in the list.
            span: The part of the video; None for all.
            needs_caption: Whether a clip without a caption is skipped.
        """
        path = next(filter(None, map(self._videos.find_video, names)), None)
        if path is None:
            self._missing.append(printable(names[0]))
            return
        file = display_path(path, self._folder)
        if span:
            file += f" from {span[0]:g} to {span[1]:g} seconds"
        texts = [text for text in map(normalize_caption, captions) if text]
        if reason := self._fault(clip_id, texts, span, where, needs_caption=needs_caption):
            self._skipped.append(SkippedFile(file, reason))
            return
        text, others = (texts[0], texts[1:]) if texts else (None, [])
        self._clips[clip_id] = SourceClip(
            clip_id,
            file,
            path,
            split,
            loops=False,
            text=text,
            alt_captions=tuple(others),
            span=span,
        )

    def source(self, name: str, licence: str, split_rule: str) -> Source:
        """Return all entries that were added.

        Raises:
            UserError: If the list is empty, or not one of its videos is there.
        """
        if self._missing and not self._clips and not self._skipped:
            raise UserError(
                f"None of the {len(self._missing):,} clips in {self._lists} has its video in "
                f"{self._folder}; looked for {self._missing[0]} first, and "
                f"{summarize_folder(self._folder)}."
            )
        if not self._clips and not self._skipped:
            raise UserError(f"{self._lists} in {self._folder} names no clip; fill it.")
        return Source(
            name,
            self._folder,
            licence,
            split_rule,
            list(self._clips.values()),
            self._skipped + self._summaries(),
        )

    def _fault(
        self,
        clip_id: str,
        texts: list[str],
        span: TimeRange | None,
        where: str,
        *,
        needs_caption: bool,
    ) -> str | None:
        if clip_id in self._clips:
            return f"listed again in {where}, ignored"
        if not is_utf8(clip_id):
            return f"its id is not UTF-8 text ({where})"
        if span and not 0 <= span[0] < span[1]:
            return f"its start is not before its end ({where})"
        if needs_caption and not texts:
            return f"no caption ({where})"
        reasons = filter(None, map(check_caption, texts))
        return next((f"{reason} ({where})" for reason in reasons), None)

    def _summaries(self) -> list[SkippedFile]:
        """Return one line for all missing videos, and one for all that no entry names."""
        summaries = []
        if self._missing:
            listed = len(self._clips) + len(self._skipped) + len(self._missing)
            reason = f"{len(self._missing):,} of {listed:,} clips have no video here"
            summaries.append(SkippedFile(self._lists, f"{reason} (the first: {self._missing[0]})"))
        if unreferenced := self._videos.unreferenced():
            first = display_path(unreferenced[0], self._folder)
            reason = f"{len(unreferenced):,} videos here are in no entry (the first: {first})"
            summaries.append(SkippedFile(self._lists, reason))
        return summaries


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    # strict: a quote that is never closed would take the rest of the file for one text
    reader = csv.DictReader(iter_lines(path), delimiter=_delimiter(path), strict=True)
    try:
        reader.fieldnames = _clean_heading(reader.fieldnames or [])
        for name, count in Counter(reader.fieldnames).items():
            if name and count > 1:
                raise UserError(f"{path} has the column {printable(name)} twice; remove one.")
        for row in reader:
            if None in row:
                raise UserError(
                    f"{path}, line {reader.line_num} has more fields than the heading; put "
                    "quotes around texts with commas."
                )
            given = {name: text for name, text in row.items() if text is not None}
            yield f"line {reader.line_num}", given
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.reader.line_num} is not CSV ({error}); correct it."
        ) from None


def _clean_heading(names: Sequence[str]) -> list[str]:
    """Return the names of columns in small letters, without spaces around them."""
    return [name.strip().lower() for name in names]


def _delimiter(path: Path) -> str:
    """Return what separates the names in the heading of a CSV file."""
    heading = next(iter_lines(path), "")
    return max(_DELIMITERS, key=heading.count) if heading else ","


def _is_json_lines(path: Path) -> bool:
    """Return whether a file has one JSON object a line, from its first line that is not empty."""
    if path.suffix.lower() == ".jsonl":
        first = next(filter(str.strip, iter_lines(path)), "")
        return not first.lstrip().startswith("[{") and first.strip() != "["
    try:
        first = next(filter(str.strip, iter_lines(path)), "")
        is_object = isinstance(json.loads(first), dict)
    except (TextFileError, ValueError, RecursionError):
        return False
    lines = filter(str.strip, iter_lines(path))
    return is_object and len([line for _, line in zip(range(2), lines, strict=False)]) == 2


def _read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(iter_lines(path), start=1):
        if line.strip():
            yield f"line {number}", _parse(path, number, line)


def _parse(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, line {number} is not JSON ({error}); correct that line."
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number} is not a JSON object, {{...}}; correct that line.")
    return row


def _read_json_list(path: Path) -> Iterator[tuple[str, Row]]:
    entries = read_json(path)
    if isinstance(entries, dict) and entries:
        entries = [_named_row(name, value) for name, value in entries.items()]
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a JSON list of clips, [{{...}}, ...]; make it one.")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, entry {number} is not a JSON object, {{...}}; correct it.")
        yield f"entry {number}", entry


def _named_row(name: str, value: object) -> object:
    """Return an entry of {"a.mp4": "words"} or {"a.mp4": {"caption": "words"}} as a row."""
    if isinstance(value, str):
        return {"file_name": name, "text": value}
    return {"file_name": name, **value} if isinstance(value, dict) else value

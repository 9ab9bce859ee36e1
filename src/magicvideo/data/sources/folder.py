"""Any folder of video files with captions beside them.

Captions are `clip.txt` beside `clip.mp4`, or the columns `file_name` and `text` of a
`metadata.jsonl` or `metadata.csv` at the top of the folder, which also may carry `split` (train or
heldout). Where a file has both, the metadata counts.
"""

import csv
import io
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from magicvideo.data.manifest import Split
from magicvideo.data.reader import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from magicvideo.data.sources.source import Candidate, Skipped, Source
from magicvideo.data.sources.splits import split_by_hash
from magicvideo.errors import UserError

NAME = "folder"
METADATA = ("metadata.jsonl", "metadata.csv")
SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES

_Row = dict[str, Any]


def find_clips(folder: Path, holdout: float = 0.0) -> Source:
    """Return the clips of a folder and its subfolders; hidden files are passed over.

    Args:
        folder: Where to look.
        holdout: Share of the clips, chosen by the hash of the id, that training does not see.
            Clips whose metadata names a split follow that.

    Raises:
        UserError: If the metadata cannot be read, or `holdout` is not a share.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout {holdout} is not a share; give a number from 0 to below 1.")
    rows, skipped = _read_metadata(folder)
    candidates = []
    for path in _offered(folder):
        found = _look_at(path, folder, rows.pop(path, None), holdout)
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            candidates.append(found)
    skipped += [
        Skipped(_show(path, folder), "in the metadata, but there is no file") for path in rows
    ]
    rule = "Held out: what the metadata names so"
    if holdout:
        rule += f", and {holdout:g} of the other clips by the SHA-256 of their id"
    licence = "not stated; the clips' owner decides"
    return Source(NAME, folder, licence, f"{rule}.", _with_unique_ids(candidates), skipped)


def _offered(folder: Path) -> list[Path]:
    """Return all files but hidden ones, metadata and the captions of clips, in order."""
    paths = [
        path
        for path in folder.rglob("*")
        if not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path not in {folder / name for name in METADATA}
    ]
    captions = {path.with_suffix(".txt") for path in paths if path.suffix.lower() in SUFFIXES}
    return sorted(path for path in paths if path not in captions)


def _look_at(path: Path, folder: Path, row: _Row | None, holdout: float) -> Candidate | Skipped:
    name = _show(path, folder)
    if not _is_utf8(str(path)):
        return Skipped(name, "its name is not UTF-8; rename it")
    if path.suffix == ".txt":
        return Skipped(name, "text, and no video of the same name beside it")
    if path.suffix.lower() not in SUFFIXES:
        return Skipped(name, f"no video by its suffix ({', '.join(sorted(SUFFIXES))})")
    text = row["text"] if row else _read_caption(path.with_suffix(".txt"))
    if isinstance(text, Skipped):
        return Skipped(name, text.reason)
    text = " ".join(text.split())
    if not text or not _is_utf8(text):
        return Skipped(name, "its caption is not UTF-8 text" if text else "its caption is empty")
    clip_id = path.relative_to(folder).with_suffix("").as_posix()
    split: Split = (row or {}).get("split") or split_by_hash(clip_id, holdout)
    return Candidate(clip_id, name, path, split, loops=False, text=text)


def _read_caption(path: Path) -> str | Skipped:
    if not path.is_file():
        return Skipped(path.name, f"no caption: neither {path.name} nor a line in the metadata")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return Skipped(path.name, f"{path.name} is not UTF-8 text")
    except OSError as error:
        return Skipped(path.name, f"{path.name} cannot be read ({error.strerror})")


def _with_unique_ids(candidates: list[Candidate]) -> list[Candidate]:
    """Give clips that differ in their suffix alone (a.mp4, a.gif) ids with the suffix."""
    count = Counter(one.id for one in candidates)
    return [
        one if count[one.id] == 1 else replace(one, id=one.id + one.path.suffix)
        for one in candidates
    ]


def _read_metadata(folder: Path) -> tuple[dict[Path, _Row], list[Skipped]]:
    present = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(present) > 1:
        raise UserError(f"{folder} holds {' and '.join(METADATA)}; keep one of them.")
    rows: dict[Path, _Row] = {}
    skipped = []
    for number, row in _read_rows(present[0]) if present else ():
        _check_row(present[0], number, row)
        path = folder / row["file_name"]
        if reason := _refuse_path(path, folder):
            skipped.append(Skipped(ascii(row["file_name"]), reason))
        elif path in rows:
            skipped.append(Skipped(row["file_name"], f"listed again in line {number}, passed over"))
        else:
            rows[path] = row
    return rows, skipped


def _refuse_path(path: Path, folder: Path) -> str | None:
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except ValueError:
        return "no valid file name"
    return None if inside else "outside the folder"


def _read_rows(path: Path) -> list[tuple[int, _Row]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    if path.suffix == ".csv":
        try:
            return list(enumerate(csv.DictReader(io.StringIO(text)), start=2))
        except csv.Error as error:
            raise UserError(f"{path} is not CSV ({error}); mend it.") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append((number, _parse_line(path, number, line)))
    return rows


def _parse_line(path: Path, number: int, line: str) -> _Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is not JSON ({error}); mend that line.") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number} is not a JSON object with file_name and text.")
    return row


def _check_row(path: Path, number: int, row: _Row) -> None:
    for column in ("file_name", "text"):
        if not isinstance(row.get(column), str):
            raise UserError(
                f"{path}, line {number} has no {column} (it has {', '.join(map(str, row))}); "
                "every line needs file_name and text."
            )
    split = row.get("split")
    if split and split not in get_args(Split):
        raise UserError(f"{path}, line {number}: split {split!r} is neither train nor heldout.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(path: Path, folder: Path) -> str:
    return os.fsencode(os.path.relpath(path, folder)).decode("utf-8", "backslashreplace")

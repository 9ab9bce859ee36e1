"""Lists of clips as people write them: CSV, JSON Lines and JSON; mistakes are named by place."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from magicvideo.errors import UserError

Row: TypeAlias = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a .csv, .jsonl or .json file, each with its place, such as "line 3".

    A JSON file holds one list of objects. CSV and JSON Lines are read as they are needed.

    Raises:
        UserError: If the file is not UTF-8, or a row is broken; the place is in the message.
    """
    read = {".csv": _read_csv, ".jsonl": _read_json_lines}.get(path.suffix.lower(), _read_list)
    try:
        yield from read(path)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def read_json(path: Path) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Return what a JSON file holds.

    Raises:
        UserError: If it is not JSON; the line is in the message.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno} is not JSON ({error.msg}); mend that line."
        ) from None


def check_texts(path: Path, where: str, row: Row, columns: Iterable[str]) -> None:
    """Check that a row has a text in each of some columns.

    Raises:
        UserError: If it has not; the message says what every row needs.
    """
    columns = tuple(columns)
    for column in columns:
        if not isinstance(row.get(column), str):
            raise UserError(
                f"{path}, {where} has no {column} (it has {', '.join(map(str, row))}); "
                f"every line needs {' and '.join(columns)}."
            )


def csv_columns(path: Path) -> list[str]:
    """Return the heading of a CSV file, or nothing if it has none that can be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row:
                    raise UserError(
                        f"{path}, line {reader.line_num} has more fields than the heading; put "
                        "quotes around texts with commas."
                    )
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.reader.line_num} is not CSV ({error}); mend it."
            ) from None


def _read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", _parse(path, number, line)


def _parse(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is not JSON ({error}); mend that line.") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number} is not a JSON object, {{...}}; mend that line.")
    return row


def _read_list(path: Path) -> Iterator[tuple[str, Row]]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a JSON list of clips, [{{...}}, ...]; make it one.")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, entry {number} is not a JSON object, {{...}}; mend it.")
        yield f"entry {number}", entry

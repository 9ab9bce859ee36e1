"""The page of results: each command replaces its own marked section and nothing else."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate

NAME = r"[\w.]+([ -][\w.]+)*"
"""What a section can be called: a name goes into a comment of the page, which `--` would end."""
_HEAD = (
    "# Results\n\n"
    "Each section is written by the command that it names; the command replaces its own section\n"
    "and leaves the others.\n"
)


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section of this name in a page, or append it.

    Args:
        page: A Markdown file, created if it does not exist. Other text stays.
        name: Of the section; matches `NAME`.
        text: The section as Markdown, its heading included.

    Raises:
        UserError: If the marks of the section that is there are damaged.
    """
    whole = replace_section(_read(page), name, text)
    with atomic_file(page) as partial:
        partial.write_text(whole, encoding="utf-8")


def check_page(page: Path, name: str) -> None:
    """Raise the errors of `write_section` early, before the section is computed.

    Raises:
        UserError: If the page is not a text file, or the section's markers are damaged.
    """
    _bounds(_read(page), name)


def replace_section(page: str, name: str, text: str) -> str:
    """Return a page in which the section of this name is replaced or appended.

    Raises:
        UserError: If only one of the section's two marks is there, or one is there twice.
    """
    begin, end = _marks(name)
    section = f"{begin}\n\n{text.strip()}\n\n{end}"
    bounds = _bounds(page, name)
    if bounds is None:
        return f"{page.rstrip()}\n\n{section}\n"
    first, last = bounds
    return page[:first] + section + page[last:]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def zip_rows(tables: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> list[tuple[str, ...]]:
    """Merge the rows of several tables of the same measures into one table.

    Args:
        tables: Each with a label, which becomes the second cell of its rows. The first is the
            measure; its rows stand together.
    """
    rows = [(first, label, *rest) for label, table_rows in tables for first, *rest in table_rows]
    places = {name: place for place, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    return sorted(rows, key=lambda row: places[row[0]])


def format_estimate(estimate: Estimate, digits: int) -> str:
    """Return an estimate with its interval, if it has one."""
    if not math.isfinite(estimate.value):
        return "not defined"
    value = f"{estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def provenance_table(identity: Mapping[str, Any]) -> str:
    """Return the table of what the numbers depend on."""
    return markdown_table(
        ("depends on", ""), [(name, _identity_cell(value)) for name, value in identity.items()]
    )


def nan_to_none(node: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value in which every number that is not finite has become None."""
    if isinstance(node, dict):
        return {name: nan_to_none(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [nan_to_none(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _HEAD
    except UnicodeDecodeError:
        raise UserError(f"{page} is not a text file; name a Markdown page.") from None


def _marks(name: str) -> tuple[str, str]:
    assert re.fullmatch(NAME, name), name
    return f"<!-- results: {name} -->", f"<!-- end of results: {name} -->"


def _bounds(page: str, name: str) -> tuple[int, int] | None:
    """Return where a section begins and ends, marks included, or None where it is absent."""
    begin, end = _marks(name)
    if begin not in page and end not in page:
        return None
    first, last = page.find(begin), page.find(end)
    if page.count(begin) != 1 or page.count(end) != 1 or last < first:
        raise UserError(
            f"The page needs one {begin!r} with one {end!r} after it; repair these marks or remove "
            "both, and the section is appended."
        )
    return first, last + len(end)


def _identity_cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)

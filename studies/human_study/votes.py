"""The votes of a study, in SQLite beside it."""

import sqlite3
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from magicvideo.errors import UserError

Choice: TypeAlias = Literal["a", "same", "b"]
QUESTIONS = {
    "quality": "Which video looks better?",
    "text": "Which video shows better what the text says?",
    "motion": "Which video moves better?",
}
"""What raters are asked, by the names under which votes are kept."""
LONGEST_NAME = 40
_PATIENCE = 30.0  # seconds that a vote waits for others to be written
_TABLE = f"""CREATE TABLE IF NOT EXISTS votes (
    rater TEXT NOT NULL,
    pair INTEGER NOT NULL,
    question TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN {get_args(Choice)}),
    PRIMARY KEY (rater, pair, question)
)"""


@dataclass(frozen=True)
class Vote:
    """What one rater answered to one question on one pair."""

    rater: str
    pair: int
    question: str
    choice: Choice


class Votes:
    """The votes of a study: one a rater, pair and question; a second replaces the first.

    Args:
        folder: The study's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "votes.sqlite"
        with self._connection() as connection:
            connection.execute(_TABLE)

    def put(self, rater: str, pair: int, choices: Mapping[str, Choice]) -> None:
        """Keep the answers of a rater on a pair, all of them or, if the disk fails, none."""
        rows = [(rater, pair, question, choice) for question, choice in choices.items()]
        with self._connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO votes VALUES (?, ?, ?, ?)", rows)

    def all(self) -> list[Vote]:
        """Return every vote, sorted."""
        return self._select("SELECT * FROM votes ORDER BY rater, pair, question", ())

    def of(self, rater: str) -> dict[int, dict[str, Choice]]:
        """Return a rater's answers by pair and question."""
        found: dict[int, dict[str, Choice]] = {}
        for vote in self._select("SELECT * FROM votes WHERE rater = ?", (rater,)):
            found.setdefault(vote.pair, {})[vote.question] = vote.choice
        return found

    def _select(self, query: str, values: tuple[str, ...]) -> list[Vote]:
        with self._connection() as connection:
            return [Vote(*row) for row in connection.execute(query, values)]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Give a connection for one transaction, since the server answers on many threads."""
        connection = sqlite3.connect(self._path, timeout=_PATIENCE)
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def check_rater(name: str) -> str:
    """Return a rater's name in the form in which it is kept.

    Raises:
        UserError: If it is empty, too long, or holds what cannot be read.
    """
    clean = " ".join(unicodedata.normalize("NFC", name).split())
    if not 1 <= len(clean) <= LONGEST_NAME or not clean.isprintable():
        raise UserError(f"A name has 1 to {LONGEST_NAME} letters; write yours in another way.")
    return clean

"""The votes of a study and their summary."""

import sqlite3
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate, proportion
from magicvideo.evaluation.results_page import markdown_table
from studies.human_study.study import Study


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Return Krippendorff's alpha for nominal values: 1 is full agreement, 0 is chance agreement.

    Source: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section D:
    nominal data, any number of observers, missing data.

    Args:
        units: The values of each unit, one per rater. A unit with a single value has no pairs and
            does not count.

    Returns:
        None if alpha is not defined: there are no pairs, or all paired values are equal.
    """
    pairable = [Counter(values) for values in units if len(values) > 1]
    totals = Counter[str]()
    for counts in pairable:
        totals.update(counts)
    number = totals.total()
    expected = _unlike_pairs(totals)
    if not expected:
        return None
    observed = sum(_unlike_pairs(counts) / (counts.total() - 1) for counts in pairable)
    return 1 - (number - 1) * observed / expected


def _unlike_pairs(counts: Counter[str]) -> int:
    """Return the number of ordered pairs whose two values differ."""
    return counts.total() ** 2 - sum(count**2 for count in counts.values())


Choice: TypeAlias = Literal["a", "same", "b"]
QUESTIONS = {
    "quality": "Which video looks better?",
    "text": "Which video shows better what the text says?",
    "motion": "Which video moves better?",
}
"""The questions, by the names under which votes are stored."""
LONGEST_NAME = 40
_LOCK_TIMEOUT = 30.0  # seconds
_TABLE = f"""CREATE TABLE IF NOT EXISTS votes (
    rater TEXT NOT NULL,
    pair INTEGER NOT NULL,
    question TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN {get_args(Choice)}),
    PRIMARY KEY (rater, pair, question)
)"""


@dataclass(frozen=True)
class Vote:
    """One rater's answer to one question on one pair."""

    rater: str
    pair: int
    question: str
    choice: Choice


class Votes:
    """The votes of a study: one per rater, pair and question; a second one replaces the first.

    Args:
        folder: The study's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "votes.sqlite"
        with self._connection() as connection:
            connection.execute(_TABLE)

    def put(self, rater: str, pair: int, choices: Mapping[str, Choice]) -> None:
        """Store a rater's answers on a pair in one transaction."""
        rows = [(rater, pair, question, choice) for question, choice in choices.items()]
        with self._connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO votes VALUES (?, ?, ?, ?)", rows)

    def all(self) -> list[Vote]:
        """Return all votes, sorted."""
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
        """Open a connection for one transaction, because the server uses several threads."""
        connection = sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT)
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def check_rater(name: str) -> str:
    """Return a rater's name in the form in which it is stored.

    Raises:
        UserError: If it is empty, too long, or contains unprintable characters.
    """
    clean = " ".join(unicodedata.normalize("NFC", name).split())
    if not 1 <= len(clean) <= LONGEST_NAME or not clean.isprintable():
        raise UserError(f"A name has 1 to {LONGEST_NAME} printable characters; enter another one.")
    return clean


_COLUMNS = (
    "question",
    "win rate of A [95 %]",
    "A / same / B",
    "votes",
    "raters",
    "pairs won by A / even / B",
    "agreement",
)
_LEGEND = (
    "*Win rate*: the fraction of A among the votes for either side, with a Wilson interval. The "
    "interval assumes independent votes, but votes of one rater or on one pair are correlated. "
    "*Pairs*: each pair counts once, by the majority of its votes for either side. *Agreement*: "
    "Krippendorff's alpha of the three answers as nominal values, 1 for full agreement and 0 for "
    "chance."
)


@dataclass(frozen=True, kw_only=True)
class VoteSummary:
    """The votes on one question."""

    question: str
    choices: Counter[Choice]
    raters: int
    win_rate: Estimate | None
    """The fraction of A among the votes for A or B; None if there are none."""
    pairs: Counter[Choice]
    """Number of pairs for each choice of the majority."""
    agreement: float | None
    """Krippendorff's alpha; None if it is not defined."""


def summarize_votes(votes: Iterable[Vote], question: str) -> VoteSummary:
    """Count the votes on a question."""
    asked = [vote for vote in votes if vote.question == question]
    by_pair: defaultdict[int, list[Choice]] = defaultdict(list)
    for vote in asked:
        by_pair[vote.pair].append(vote.choice)
    return VoteSummary(
        question=question,
        choices=Counter(vote.choice for vote in asked),
        raters=len({vote.rater for vote in asked}),
        win_rate=_share(vote.choice == "a" for vote in asked if vote.choice != "same"),
        pairs=Counter(_majority(choices) for choices in by_pair.values()),
        agreement=krippendorff_alpha(list(by_pair.values())),
    )


def left_bias(study: Study, votes: Iterable[Vote]) -> Estimate | None:
    """Return the fraction of votes for the left video among votes for either; about 0.5 is fair."""
    return _share(
        vote.choice == study.left(vote.rater, vote.pair) for vote in votes if vote.choice != "same"
    )


def as_markdown(study: Study, votes: list[Vote], command: str) -> str:
    """Return the report as a section of a Markdown page, with the command that wrote it."""
    left = left_bias(study, votes)
    sections = [
        f"## Human evaluation of {study.a.name} and {study.b.name}",
        f"`{command}`",
        _method(study),
        markdown_table(
            _COLUMNS, [_row(summarize_votes(votes, question)) for question in QUESTIONS]
        ),
        _LEGEND,
        f"The left video was chosen in {_percent(left)} of the votes for either side; sides were "
        "shuffled for each rater and pair.",
    ]
    return "\n\n".join(sections) + "\n"


def _method(study: Study) -> str:
    sources = [
        f"{letter} is {source.name} ({_KINDS[source.kind]}, {source.hash[:12]})"
        for letter, source in (("A", study.a), ("B", study.b))
    ]
    changed = {
        name: value for name, value in vars(study.settings).items() if value not in (None, "")
    }
    settings = ", ".join(f"{name} {value}" for name, value in changed.items())
    return (
        f"{'; '.join(sources)}. {len(study.prompts)} pairs, one per prompt. Generated videos have "
        f"the seed {study.seed} for the first prompt and the following seeds for the next ones, on "
        f"both sides. Settings: {settings or 'the defaults of each model'}."
    )


_KINDS = {"model": "a model", "videos": "finished videos"}


def _row(found: VoteSummary) -> tuple[str, ...]:
    return (
        QUESTIONS[found.question],
        f"**{_percent(found.win_rate)}**",
        _counts(found.choices),
        str(found.choices.total()),
        str(found.raters),
        _counts(found.pairs),
        "not defined" if found.agreement is None else f"{found.agreement:.3f}",
    )


def _counts(counts: Counter[Choice]) -> str:
    return f"{counts['a']} / {counts['same']} / {counts['b']}"


def _percent(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "not defined"
    value, low, high = (100 * each for each in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} % [{low:.1f} %, {high:.1f} %]"


def _share(hits: Iterable[bool]) -> Estimate | None:
    values = np.array(list(hits), dtype=bool)
    return proportion(values) if len(values) else None


def _majority(choices: list[Choice]) -> Choice:
    counts = Counter(choices)
    if counts["a"] == counts["b"]:
        return "same"
    return "a" if counts["a"] > counts["b"] else "b"

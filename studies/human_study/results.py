"""What the votes of a study say: win rates with their intervals, and how far raters agree."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from magicvideo.evaluation.confidence_intervals import Estimate, proportion
from magicvideo.evaluation.results_page import markdown_table
from studies.human_study.agreement import krippendorff_alpha
from studies.human_study.study import Study
from studies.human_study.votes import QUESTIONS, Choice, Vote

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
    "*Win rate*: the share of A among the votes for one of both, with Wilson's interval; it takes "
    "votes as independent, and those of one rater or on one pair are not quite. *Pairs*: each pair "
    "counted once, by the majority of its votes for one of both. *Agreement*: Krippendorff's alpha "
    "of the three answers as nominal values, 1 for full agreement and 0 for chance."
)


@dataclass(frozen=True, kw_only=True)
class VoteSummary:
    """The votes on one question."""

    question: str
    choices: Counter[Choice]
    raters: int
    win_rate: Estimate | None
    """The share of A among the votes for A or B; None where there is no such vote."""
    pairs: Counter[Choice]
    """Pairs by what the majority chose."""
    agreement: float | None
    """Krippendorff's alpha; None where it is not defined."""


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
    """Return the share of the left video among all votes for one of both: about half is fair."""
    return _share(
        vote.choice == study.left(vote.rater, vote.pair) for vote in votes if vote.choice != "same"
    )


def as_markdown(study: Study, votes: list[Vote], command: str) -> str:
    """Return the report as a section of a Markdown page, with the command that made it."""
    left = left_bias(study, votes)
    sections = [
        f"## {study.a.name} and {study.b.name}, judged by people",
        f"`{command}`",
        _method(study),
        markdown_table(
            _COLUMNS, [_row(summarize_votes(votes, question)) for question in QUESTIONS]
        ),
        _LEGEND,
        f"The left video was chosen in {_percent(left)} of the votes for one of both; sides were "
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
        f"{'; '.join(sources)}. {len(study.prompts)} pairs, one a prompt; videos that were "
        f"generated have seed {study.seed} for the first prompt and the next for each further one, "
        f"on both sides. Settings: {settings or 'the defaults of each model'}."
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

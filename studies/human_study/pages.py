"""The pages for raters, and the processing of their answers, independent of HTTP."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from magicvideo.errors import UserError
from studies.human_study.results import LONGEST_NAME, QUESTIONS, Choice, Votes, check_rater
from studies.human_study.study import Study, other_side

PAGES = Path(__file__).parent / "pages"
_ANSWERS = {"left": "left", "same": "about the same", "right": "right"}


class StudyPages:
    """The pages of one study. None of them reveals which model generated a video.

    Args:
        study: The study.
        votes: The store of the answers.
    """

    def __init__(self, study: Study, votes: Votes) -> None:
        self._study, self._votes = study, votes
        self._templates = Environment(
            loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined
        )

    def welcome(self, problem: str = "") -> str:
        """Return the first page, on which raters enter their name."""
        return self._render("welcome.html", {"problem": problem, "longest": LONGEST_NAME})

    def pair(self, rater: str, place: int | None) -> str:
        """Return the page of a pair, with the rater's earlier answers.

        Args:
            rater: The name as typed.
            place: Position in the rater's order, from 1; None for the first pair without all
                answers, or for the final page if there is none.

        Raises:
            UserError: If the name or the position is not valid.
        """
        rater = check_rater(rater)
        order, given = self._study.order(rater), self._votes.of(rater)
        if place is None:
            open_places = (
                number
                for number, pair in enumerate(order, start=1)
                if given.get(pair, {}).keys() != QUESTIONS.keys()
            )
            place = next(open_places, None)
            if place is None:
                return self._render("done.html", {"rater": rater})
        if not 1 <= place <= len(order):
            raise UserError(f"There is no pair {place}; the last is {len(order)}.")
        pair = order[place - 1]
        left = self._study.left(rater, pair)
        shown = {
            "rater": rater,
            "place": place,
            "pair": pair,
            "prompt": self._study.prompts[pair],
            "videos": {
                "Left": self._study.video_name(left, pair),
                "Right": self._study.video_name(other_side(left), pair),
            },
            "answers": _ANSWERS,
            "given": {
                question: self._as_seen(rater, pair, choice)
                for question, choice in given.get(pair, {}).items()
            },
        }
        return self._render("pair.html", shown)

    def vote(self, form: Mapping[str, str]) -> str:
        """Store the answers of a form and return the rater's name.

        Raises:
            UserError: If a field is missing or not valid.
        """
        rater = check_rater(form.get("rater", ""))
        pairs = {str(pair): pair for pair in range(len(self._study.prompts))}
        pair = pairs.get(form.get("pair", ""))
        if pair is None:
            raise UserError("There is no such pair; start again at the first page.")
        answers = {question: form.get(question) for question in QUESTIONS}
        if any(answer not in _ANSWERS for answer in answers.values()):
            raise UserError("An answer is missing; go back and answer every question.")
        self._votes.put(
            rater,
            pair,
            {name: self._as_meant(rater, pair, str(answer)) for name, answer in answers.items()},
        )
        return rater

    def _as_seen(self, rater: str, pair: int, choice: Choice) -> str:
        if choice == "same":
            return "same"
        return "left" if choice == self._study.left(rater, pair) else "right"

    def _as_meant(self, rater: str, pair: int, answer: str) -> Choice:
        if answer == "same":
            return "same"
        left = self._study.left(rater, pair)
        return left if answer == "left" else other_side(left)

    def _render(self, template: str, values: Mapping[str, object]) -> str:
        total = len(self._study.prompts)
        return self._templates.get_template(template).render(
            total=total, questions=QUESTIONS, **values
        )

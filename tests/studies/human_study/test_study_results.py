import pytest

from studies.human_study.results import Vote, as_markdown, left_bias, summarize_votes


def votes_of(question, answers):
    """Votes from one string a rater, a letter a pair: a, b, s for the same, a dot for none."""
    words = {"a": "a", "b": "b", "s": "same"}
    return [
        Vote(rater, pair, question, words[letter])
        for rater, letters in answers.items()
        for pair, letter in enumerate(letters)
        if letter != "."
    ]


VOTES = votes_of("quality", {"Ada": "aasba", "Bo": "aabb.", "Cy": "as..b"}) + votes_of(
    "motion", {"Ada": "sssss"}
)


def test_votes_are_counted():
    found = summarize_votes(VOTES, "quality")
    assert found.choices == {"a": 6, "same": 2, "b": 4}
    assert found.raters == 3
    assert found.pairs == {"a": 2, "same": 1, "b": 2}
    assert found.win_rate.value == pytest.approx(0.6)
    # Wilson's interval of 6 in 10: (p + z^2/2n -+ z sqrt(pq/n + z^2/4n^2)) / (1 + z^2/n), z 1.96
    assert (found.win_rate.low, found.win_rate.high) == pytest.approx((0.31267, 0.83182), abs=1e-5)
    # by hand: n 12, unlike pairs 0 + 4/2 + 2/1 + 0 + 2/1 = 6, of 12^2 - 6^2 - 2^2 - 4^2 = 88
    assert found.agreement == pytest.approx(1 - 11 * 6 / 88)


def test_without_a_decided_vote_there_is_no_win_rate(study):
    motion, text = summarize_votes(VOTES, "motion"), summarize_votes(VOTES, "text")
    assert (motion.win_rate, motion.agreement) == (None, None)
    assert motion.choices == {"same": 5}
    assert (text.win_rate, text.raters) == (None, 0)
    assert left_bias(study, votes_of("motion", {"Ada": "sss"})) is None


def test_a_rater_who_always_chooses_left_is_detected(study):
    votes = [Vote("Ada", pair, "quality", study.left("Ada", pair)) for pair in range(5)]
    assert left_bias(study, votes).value == 1


def test_the_report_has_the_numbers(study):
    page = as_markdown(study, VOTES, "python -m studies compare-report runs/compare")
    lines = page.splitlines()
    assert lines[0] == "## Human evaluation of secretive-alpha and cunning-beta"
    assert "`python -m studies compare-report runs/compare`" in lines
    assert (
        "| Which video looks better? | **60.0 % [31.3 %, 83.2 %]** | 6 / 2 / 4 | 12 | 3 "
        "| 2 / 1 / 2 | 0.250 |"
    ) in lines
    assert (
        "| Which video moves better? | **not defined** | 0 / 5 / 0 | 5 | 1 | 0 / 5 / 0 "
        "| not defined |"
    ) in lines
    assert f"A is secretive-alpha (finished videos, {study.a.hash[:12]})" in page
    assert "5 pairs, one per prompt" in page

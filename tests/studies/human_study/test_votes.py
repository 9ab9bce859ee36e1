import threading

import pytest

from magicvideo.errors import UserError
from studies.human_study.results import Vote, Votes, check_rater


def test_a_second_vote_replaces_the_first(tmp_path):
    votes = Votes(tmp_path)
    votes.put("Ada", 3, {"quality": "a", "motion": "same"})
    votes.put("Bo", 3, {"quality": "b"})
    votes.put("Ada", 3, {"quality": "b", "text": "a"})
    assert Votes(tmp_path).all() == [
        Vote("Ada", 3, "motion", "same"),
        Vote("Ada", 3, "quality", "b"),
        Vote("Ada", 3, "text", "a"),
        Vote("Bo", 3, "quality", "b"),
    ]
    assert votes.of("Ada") == {3: {"motion": "same", "quality": "b", "text": "a"}}
    assert votes.of("Eve") == {}


def test_names_are_values_and_never_sql(tmp_path):
    votes, name = Votes(tmp_path), "x'); DROP TABLE votes; --"
    votes.put(name, 0, {"quality": "a"})
    assert votes.of(name) == {0: {"quality": "a"}}
    assert votes.of("x' OR '1'='1") == {}


def test_simultaneous_votes_are_all_stored(tmp_path):
    votes = Votes(tmp_path)

    def vote(rater):
        for pair in range(5):
            votes.put(rater, pair, {"quality": "a", "text": "b", "motion": "same"})

    threads = [threading.Thread(target=vote, args=(f"rater {n}",)) for n in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(votes.all()) == 7 * 5 * 3


def test_a_name_is_stored_in_one_normal_form():
    assert check_rater("  Ada\t  Lovelace ") == "Ada Lovelace"
    assert check_rater("Ame\u0301lie") == "Am\u00e9lie"


@pytest.mark.parametrize("name", ["", "  ", "x" * 41, "bell\a", "\u202egnihtemos"])
def test_an_invalid_name_is_refused(name):
    with pytest.raises(UserError, match="A name has 1 to 40 printable characters"):
        check_rater(name)

import re
from pathlib import Path

import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate
from magicvideo.evaluation.results_page import (
    NAME,
    check_page,
    format_estimate,
    markdown_table,
    replace_section,
    write_section,
)


def test_a_section_replaces_only_itself(tmp_path):
    page = tmp_path / "results.md"
    write_section(page, "first", "## First\n\nold")
    write_section(page, "second one", "## Second\n\nnumbers")
    page.write_text(page.read_text() + "\nA remark.\n")
    before = page.read_text()
    write_section(page, "first", "## First\n\nnew\n")
    assert page.read_text() == before.replace("old", "new")
    assert before.startswith("# Results\n")
    assert before.index("## First") < before.index("## Second") < before.index("A remark.")


def test_a_name_that_begins_like_another_is_another():
    page = replace_section("# Page\n", "run", "one")
    assert replace_section(page, "run-2", "two").count("one") == 1
    assert re.fullmatch(NAME, "emoji-heldout")
    assert not re.fullmatch(NAME, "a--b")


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results: first -->\n",
        "<!-- end of results: first -->\n",
        "<!-- end of results: first -->\n<!-- results: first -->\n",
        2 * "<!-- results: first -->\n<!-- end of results: first -->\n",
    ],
)
def test_damaged_marks_are_refused_before_and_after_the_work(tmp_path, text):
    page = tmp_path / "results.md"
    page.write_text(text)
    for refuse in (lambda: check_page(page, "first"), lambda: write_section(page, "first", "x")):
        with pytest.raises(UserError, match="repair these marks"):
            refuse()
    check_page(page, "second")
    assert page.read_text() == text


def test_a_page_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "page.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        check_page(tmp_path / "page.md", "first")


@pytest.mark.parametrize("name", ["emoji-heldout", "interpolation", "decoders", "upscaler"])
def test_the_page_of_this_repository_has_a_place_for_every_command(name):
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    replaced = replace_section(page, name, "## New")
    assert len(replaced) < len(page)
    assert replaced.count("<!--") == page.count("<!--")


def test_tables_and_numbers():
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert format_estimate(Estimate(1.23456, 7), 2) == "1.23"
    assert format_estimate(Estimate(float("nan"), 7), 2) == "not defined"
    assert format_estimate(Estimate(1.23456, 7, 1.0, 1.5), 2) == "1.23 [1.00, 1.50]"

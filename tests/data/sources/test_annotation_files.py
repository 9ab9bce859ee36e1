import re

import pytest

from magicvideo.data.sources.annotation_list import read_json, read_rows
from magicvideo.errors import UserError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.csv", '\ufeffx,y\n1,2\n\n3,"4\n5"\n', ["line 2", "line 5"]),
        ("a.jsonl", '\ufeff{"x": "1", "y": "2"}\n\n{"x": "3", "y": "4\\n5"}', ["line 1", "line 3"]),
        ("a.json", '[{"x": "1", "y": "2"},\n{"x": "3", "y": "4\\n5"}]', ["entry 1", "entry 2"]),
    ],
)
def test_rows_have_their_line_numbers(tmp_path, name, content, places):
    rows = [{"x": "1", "y": "2"}, {"x": "3", "y": "4\n5"}]
    assert list(read_rows(write(tmp_path, name, content))) == list(zip(places, rows, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y\n1,2\n1,2,3\n", "line 3 has more fields than the heading"),
        ("a.csv", f'x,y\n1,"{"z" * 200_000}"\n', "line 2 is not CSV"),
        ("a.csv", b"x,y\n1,\xff\n", "is not UTF-8 text"),
        ("a.jsonl", '{"x": 1}\n{"x": }\n', "line 2 is not JSON"),
        ("a.jsonl", '{"x": 1}\n[]\n', "line 2 is not a JSON object, {...}"),
        ("a.jsonl", b'{"x": "\xff"}', "is not UTF-8 text"),
        ("a.json", '[{"x": 1},\n{"x"}]', "line 2 is not JSON"),
        ("a.json", '[{"x": 1}, 2]', "entry 2 is not a JSON object"),
        ("a.json", "{}", "is not a JSON list of clips"),
        ("a.json", b"\xff", "is not UTF-8 text"),
    ],
)
def test_errors_name_the_place(tmp_path, name, content, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        list(read_rows(write(tmp_path, name, content)))
    assert str(tmp_path / name) in str(caught.value)


def test_rows_before_a_mistake_are_read_as_they_are_needed(tmp_path):
    rows = read_rows(write(tmp_path, "a.jsonl", '{"x": 1}\nnonsense\n'))
    assert next(rows) == ("line 1", {"x": 1})
    with pytest.raises(UserError, match="line 2"):
        next(rows)


def test_any_json_can_be_read(tmp_path):
    assert read_json(write(tmp_path, "a.json", "\ufeff[1, null]")) == [1, None]

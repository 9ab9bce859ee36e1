import os

import pytest

from magicvideo.data.text_files import TextFileError, iter_lines, read_prompts, read_text
from magicvideo.errors import UserError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompts_are_read_from_files_of_any_editor(tmp_path, encoding):
    path = tmp_path / "prompts.txt"
    path.write_bytes("# a comment\r\nfox\r\n\r\n  red heart \r\n".encode(encoding))
    assert read_prompts(path) == ["fox", "red heart"]


def test_a_byte_order_mark_before_a_comment_is_ignored(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# a comment\nfox\n".encode())
    assert read_prompts(path) == ["fox"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9\n", "is not UTF-8 text; save it as UTF-8"),
        (b"\xff\xfea", "is not UTF-8 text"),
        (b"# only a comment\n\n", "holds no prompt; write one on each line"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(path)
    with pytest.raises(UserError, match=r"gone\.txt cannot be read \(No such file"):
        read_prompts(tmp_path / "gone.txt")


def test_pipes_and_huge_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_text, lambda path: list(iter_lines(path))):
        with pytest.raises(TextFileError, match="is not a regular file"):
            read(tmp_path / "pipe")
    (tmp_path / "long").write_text("x" * 50 + "\n" + "y" * 51)
    with pytest.raises(TextFileError, match="has 102 bytes, more than 100"):
        read_text(tmp_path / "long", 100)
    with pytest.raises(TextFileError, match="more than 50 characters in line 1, the limit"):
        list(iter_lines(tmp_path / "long", 50))
    assert [len(line) for line in iter_lines(tmp_path / "long", 51)] == [51, 51]

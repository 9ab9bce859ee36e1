"""Prompts from files and terminals: byte order marks, other encodings, hyphens."""

import os

import pytest

from magicvideo.cli import run
from magicvideo.cli.generate import ConditionOptions, PromptOptions
from magicvideo.errors import UserError
from magicvideo.pipelines.request import check_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompt_files_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    file = tmp_path / "prompts.txt"
    file.write_bytes("fox\r\n\n# a comment\r\n red heart \r\n".encode(encoding))
    assert PromptOptions(prompts=file).read(ConditionOptions())[0] == ["fox", "red heart"]


def test_prompt_files_of_other_encodings_are_refused(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8 text; save it as UTF-8"):
        PromptOptions(prompts=file).read(ConditionOptions())


@pytest.mark.parametrize("words", [[b"caf\xe9"], [b"fox", b"--negative-prompt", b"caf\xe9"]])
def test_bytes_that_are_not_utf_8_are_refused_before_any_work(capsys, words):
    assert run(["generate", *map(os.fsdecode, words)]) == 2
    said = capsys.readouterr().err
    assert "contains bytes that are not UTF-8 (caf\\xe9)" in said
    assert said.count("\n") == 1


def test_half_a_character_of_utf_16_is_refused_like_bytes():
    with pytest.raises(UserError, match=r"not UTF-8 \(fox \\ud83d\)"):
        check_text("The prompt", "fox \ud83d")


def test_a_prompt_with_a_leading_hyphen_gives_a_hint(capsys):
    assert run(["generate", "-fox"]) == 2
    assert "write -- before a prompt that begins with a hyphen" in capsys.readouterr().err


def test_help_shows_every_setting_with_its_default(capsys):
    assert run(["generate", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for flag in ("--steps", "--guidance-stop", "--height", "--scheduler", "--decoder-frames"):
        assert flag in shown
    assert "[default: (the model's own)]" in shown
    assert "[default: 16]" in shown

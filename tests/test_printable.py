"""Names cannot control a terminal, and names in any script stay unchanged."""

import pytest

from magicvideo.printable import printable


@pytest.mark.parametrize("text", ["café", "狐\u3000犬", "👩\u200d🍳 cook", "a\u00a0b", "\\x1b"])
def test_letters_of_any_script_are_shown(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\u202egpj", r"a\u202egpj"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud83d", r"\ud83d"),
        ("a\nb\u2028c\x9b", r"a\nb\u2028c\x9b"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable("a\nb", keep="\n") == "a\nb"

"""Texts of strangers on a terminal: characters that it would obey are shown as escapes."""

import unicodedata

_JOINERS = "\u200c\u200d"  # invisible, and part of emoji and of Persian words


def printable(text: object, keep: str = "") -> str:
    r"""Return a text in which control characters, which a terminal would obey, are escaped.

    Bytes that are not UTF-8 become `\xe9`, an escape character becomes `\x1b`.

    Args:
        text: What to print, such as the name of a file.
        keep: Control characters that are left as they are, such as line ends.
    """
    return "".join(one if one in keep else _escape(one) for one in str(text))


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is not UTF-8, as Python reads file names
        return f"\\x{ord(char) - 0xDC00:02x}"
    is_control = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if is_control and char not in _JOINERS:
        return char.encode("unicode_escape").decode()
    return char

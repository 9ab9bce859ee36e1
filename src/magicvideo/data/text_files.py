"""Text files of users: prompts, captions and lists, with limits on their size.

Editors on Windows save UTF-8 with a byte order mark, and PowerShell writes UTF-16. Both marks name
the encoding, so both are read; everything else must be UTF-8.
"""

import codecs
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magicvideo.errors import UserError
from magicvideo.limits import MAX_LINE_LENGTH, MAX_TEXT_BYTES

_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TextFileError(ValueError):
    """A text file cannot be read; the message is a clause that follows its name."""


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a text file, one on each line, without empty lines and comments.

    Comments are lines that begin with `#`.

    Raises:
        UserError: If the file is missing, is not text, or holds no prompt.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except TextFileError as error:
        raise UserError(f"{path} {error}; give a text file with one prompt a line.") from None
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one on each line.")
    return prompts


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the content of a text file, without a byte order mark.

    Raises:
        TextFileError: If it is not a regular file, is larger than `max_bytes`, or is not text.
    """
    with _translate_errors():
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TextFileError("is not a regular file")
        if status.st_size > max_bytes:
            raise TextFileError(f"has {status.st_size:,} bytes, more than {max_bytes:,}")
        return path.read_text(encoding=_encoding(path))


def iter_lines(path: Path, max_line: int = MAX_LINE_LENGTH) -> Iterator[str]:
    r"""Yield the lines of a text file with their ends, without a byte order mark.

    Lines end at `\n` alone, as JSON Lines and CSV want it.

    Raises:
        TextFileError: If it is not a regular file, a line has more than `max_line` characters, or
            a line is not text.
    """
    with _translate_errors():
        if not stat.S_ISREG(path.stat().st_mode):
            raise TextFileError("is not a regular file")
        with path.open(encoding=_encoding(path), newline="\n") as file:
            number = 0
            while line := file.readline(max_line + 1):
                number += 1
                if len(line) > max_line:
                    raise TextFileError(
                        f"has more than {max_line:,} characters in line {number}, the limit"
                    )
                yield line


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in _MARKS else "utf-8-sig"


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except UnicodeError:  # also UTF-16 that ends in the middle of a character
        raise TextFileError("is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise TextFileError(f"cannot be read ({error.strerror})") from None

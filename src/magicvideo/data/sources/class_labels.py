"""Names of classes as prompts: "ApplyEyeMakeup" becomes "apply eye makeup"."""

import re

_WORD_BORDER = re.compile(r"[\s_-]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def readable(label: str) -> str:
    """Return the words of a class name in lower case.

    Words end at spaces, underscores and hyphens, before a capital that follows a small letter or a
    digit, and before the last of several capitals: "TVShow_2" becomes "tv show 2".
    """
    return " ".join(word.lower() for word in _WORD_BORDER.split(label) if word)

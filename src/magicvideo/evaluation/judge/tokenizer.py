"""Captions as words: a vocabulary counted from captions, and their indices."""

import re
from collections import Counter
from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

PADDING, UNKNOWN = 0, 1
_FIRST_WORD = 2
_WORD = re.compile(r"\w+(?:[-']\w+)*")


def split_words(caption: str) -> list[str]:
    """Return the words in lower case; a hyphen joins, so that "medium-light" is one tone."""
    return _WORD.findall(caption.lower())


def count_words(captions: Iterable[str], limit: int) -> tuple[str, ...]:
    """Return the `limit` most frequent words, equally frequent ones in alphabetical order."""
    counts = Counter(word for caption in captions for word in split_words(caption))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:limit])


class WordTokenizer:
    """Turns captions into rows of word indices, padded to the longest of them.

    Words that the vocabulary lacks share one index; words beyond `max_words` are dropped.
    """

    def __init__(self, words: tuple[str, ...], max_words: int) -> None:
        self.max_words = max_words
        self._index = {word: index for index, word in enumerate(words, start=_FIRST_WORD)}

    def __call__(self, captions: list[str]) -> Int[Tensor, "n l"]:
        """Return the indices; an empty caption counts as one unknown word."""
        rows = [
            [self._index.get(word, UNKNOWN) for word in split_words(caption)[: self.max_words]]
            or [UNKNOWN]
            for caption in captions
        ]
        padded = torch.full((len(rows), max(map(len, rows))), PADDING)
        for row, indices in zip(padded, rows, strict=True):
            row[: len(indices)] = torch.tensor(indices)
        return padded

"""A tokenizer in CLIP's format, learned from the captions of a data set."""

import json
import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from magicvideo.data.backgrounds import random_background
from magicvideo.data.captions import describe
from magicvideo.data.dataset import ClipDataset

_WORDINGS = 24
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def captions_of(dataset: ClipDataset, seed: int) -> Iterator[str]:
    """Yield captions of every clip in varied wording."""
    rng = np.random.default_rng(seed)
    for clip in dataset.clips:
        for _ in range(_WORDINGS):
            background = random_background(rng) if clip.channels == 4 else None
            yield describe(clip, background, rng)


def words_of(captions: list[str]) -> list[str]:
    """Return the distinct words of captions, in lower case and in order."""
    return sorted({word for text in captions for word in re.findall(r"[^\W\d_]+", text.lower())})


def train_tokenizer(captions: list[str], vocabulary_size: int, max_tokens: int) -> CLIPTokenizer:
    """Learn byte-level BPE with CLIP's splitting and its end-of-word marks.

    The vocabulary begins with all bytes, alone and at the end of a word, so no text is unknown.

    Args:
        captions: What to learn from.
        vocabulary_size: Tokens in all, at least 514.
        max_tokens: Length of a prompt, with its start and end.
    """
    empty = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    learner.normalizer, learner.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    tokens = [*alphabet, *(letter + _WORD_END for letter in alphabet)]
    merges = [tuple(pair) for pair in learned][: max(0, vocabulary_size - len(tokens) - 2)]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens)

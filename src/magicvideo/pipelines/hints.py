"""Hints about a prompt: truncation, unsupported syntax, and words unknown from training."""

import difflib
import re
import unicodedata
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

WORDS_FILE = "words.txt"
# function words, never reported as unknown
_JOINING = frozenset(
    ("a", "an", "the", "of", "on", "in", "at", "to", "by", "with", "and", "or", "is", "are", "it")
)
# prompt syntax of Stable Diffusion's web interfaces, and advice
_SYNTAX = (
    (re.compile(r"<(?:lora|lyco|hypernet):([^:>]*)(?::([^>]*))?>", re.IGNORECASE), None),
    (
        re.compile(r"\([^()]*:\s*[\d.]+\s*\)|\({2,}[^()]*\){2,}"),
        "weights in parentheses are not supported; write only the words",
    ),
    (
        re.compile(r"\[[^\[\]]*:[^\[\]]*\]|\[{2,}[^\[\]]*\]{2,}"),
        "square brackets are not supported; write only the words",
    ),
    (re.compile(r"\bBREAK\b"), "such keywords are not supported; write one sentence"),
)
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"


def prompt_hints(
    prompt: str, tokenizer: PreTrainedTokenizerBase, words: frozenset[str]
) -> list[str]:
    """Return hints about a prompt, one sentence each.

    Args:
        prompt: The prompt.
        tokenizer: The model's tokenizer; its `model_max_length` is the limit.
        words: Words of the training captions in lower case; empty if unavailable.
    """
    hints = []
    if cut := cut_text(prompt, tokenizer):
        hints.append(
            f"The prompt is longer than the model's {tokenizer.model_max_length} tokens; this part "
            f'is truncated: "{cut}".'
        )
    plain = prompt
    for pattern, advice in _SYNTAX:
        hints += [
            f'The prompt has "{match[0]}"; {advice or _lora_advice(match)}.'
            for match in pattern.finditer(plain)
        ]
        # words in brackets are part of the prompt; the name of a LoRA is not
        plain = plain if advice else pattern.sub(" ", plain)
    for word in unknown_words(plain, words):
        near = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
        known = f'; the most similar known word is "{near[0]}"' if near else ""
        hints.append(f'"{word}" is not in the training captions{known}.')
    return hints


def cut_text(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the truncated end of the prompt, or an empty string."""
    encoded = tokenizer(
        prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    kept = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    lost = encoded["offset_mapping"][kept:]
    return prompt[lost[0][0] :].strip() if lost else ""


def unknown_words(prompt: str, words: frozenset[str]) -> list[str]:
    """Return the words and emoji of a prompt that are not in `words`, without duplicates.

    Single Latin letters are ignored; single characters of scripts without spaces are words.
    """
    if not words:
        return []
    known = words | _JOINING
    found = dict.fromkeys([*split_words(prompt), *_emoji(prompt)])
    return [word for word in found if word not in known and not _is_letter(word)]


def split_words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return re.findall(r"[^\W\d_]+", text.lower())


def _is_letter(word: str) -> bool:
    return len(word) == 1 and unicodedata.name(word, "").startswith("LATIN")


def _emoji(text: str) -> Iterator[str]:
    """Yield the emoji of a text; a joined sequence counts as one."""
    sequence = ""
    for character in text:
        category = unicodedata.category(character)
        continues = sequence and (
            character in (_JOINER, _EMOJI_STYLE)
            or category == "Sk"  # a skin tone
            or sequence.endswith(_JOINER)
        )
        if continues:
            sequence += character
            continue
        if sequence:
            yield sequence
        sequence = character if category == "So" else ""
    if sequence:
        yield sequence


def _lora_advice(match: re.Match[str]) -> str:
    scale = f":{match[2]}" if match[2] else ""
    return f"a LoRA is not named in the prompt; add --lora {match[1] or 'FILE'}.safetensors{scale}"

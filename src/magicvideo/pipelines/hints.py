"""Hints on a prompt: what is cut, what is no plain text, and words not in the training captions."""

import difflib
import re
import unicodedata
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

WORDS_FILE = "words.txt"
# they join words and show nothing, whether captions had them or not
_JOINING = frozenset(
    ("a", "an", "the", "of", "on", "in", "at", "to", "by", "with", "and", "or", "is", "are", "it")
)
# the prompt syntax of web interfaces for Stable Diffusion, and what to write here
_SYNTAX = (
    (re.compile(r"<(?:lora|lyco|hypernet):([^:>]*)(?::([^>]*))?>", re.IGNORECASE), None),
    (
        re.compile(r"\([^()]*:\s*[\d.]+\s*\)|\({2,}[^()]*\){2,}"),
        "weights in parentheses are not read; write the words alone",
    ),
    (
        re.compile(r"\[[^\[\]]*:[^\[\]]*\]|\[{2,}[^\[\]]*\]{2,}"),
        "square brackets are not read; write the words alone",
    ),
    (re.compile(r"\bBREAK\b"), "such keywords are not read; write one sentence"),
)
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"


def prompt_hints(
    prompt: str, tokenizer: PreTrainedTokenizerBase, words: frozenset[str]
) -> list[str]:
    """Return one sentence for each thing about the prompt that its writer should know.

    Args:
        prompt: Text as typed.
        tokenizer: The model's own; its `model_max_length` is the limit.
        words: Words of the training captions in lower case; empty if unknown.
    """
    hints = []
    if cut := cut_text(prompt, tokenizer):
        hints.append(
            f"The prompt is longer than the {tokenizer.model_max_length} tokens that the model "
            f'reads; this is cut: "{cut}".'
        )
    plain = prompt
    for pattern, advice in _SYNTAX:
        hints += [
            f'The prompt has "{match[0]}"; {advice or _lora_advice(match)}.'
            for match in pattern.finditer(plain)
        ]
        # what a bracket holds is read on; a LoRA's name is no word of the prompt
        plain = plain if advice else pattern.sub(" ", plain)
    for word in unknown_words(plain, words):
        near = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
        known = f'; the nearest known word is "{near[0]}"' if near else ""
        hints.append(f'"{word}" is in none of the training captions{known}.')
    return hints


def cut_text(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the end of the prompt that does not fit, or an empty string."""
    encoded = tokenizer(
        prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    kept = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    lost = encoded["offset_mapping"][kept:]
    return prompt[lost[0][0] :].strip() if lost else ""


def unknown_words(prompt: str, words: frozenset[str]) -> list[str]:
    """Return words and emoji of a prompt that are not in `words`, each once, in order.

    Single letters of the Latin script count for nothing; those of scripts without spaces are words.
    """
    if not words:
        return []
    known = words | _JOINING
    found = dict.fromkeys([*split_words(prompt), *_emoji(prompt)])
    return [word for word in found if word not in known and not _is_letter(word)]


def split_words(text: str) -> list[str]:
    """Return the runs of letters of a text, in lower case."""
    return re.findall(r"[^\W\d_]+", text.lower())


def _is_letter(word: str) -> bool:
    return len(word) == 1 and unicodedata.name(word, "").startswith("LATIN")


def _emoji(text: str) -> Iterator[str]:
    """Yield the symbols of a text, a joined sequence such as a family as one."""
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

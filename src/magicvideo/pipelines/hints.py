"""What to tell about a prompt: the part that is cut, and the words that the model never saw."""

import difflib
import re

from transformers import PreTrainedTokenizerBase

WORDS_FILE = "words.txt"
# they join words and show nothing, whether captions had them or not
_JOINING = frozenset(
    ("a", "an", "the", "of", "on", "in", "at", "to", "by", "with", "and", "or", "is", "are", "it")
)


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
    for word in unknown_words(prompt, words):
        near = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
        advice = f'; the nearest that it knows is "{near[0]}"' if near else ""
        hints.append(f'The model never saw the word "{word}"{advice}.')
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
    """Return the words of a prompt that are not in `words`, each once, in order."""
    if not words:
        return []
    found = dict.fromkeys(split_words(prompt))
    return [word for word in found if len(word) > 1 and word not in words | _JOINING]


def split_words(text: str) -> list[str]:
    """Return the runs of letters of a text, in lower case."""
    return re.findall(r"[^\W\d_]+", text.lower())

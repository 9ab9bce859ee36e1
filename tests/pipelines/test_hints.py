import pytest

from magicvideo.pipelines.hints import cut_text, prompt_hints, unknown_words

WORDS = frozenset(("cat", "surfing", "woman", "blue", "background"))


def test_what_is_cut_is_what_the_encoder_never_reads(pipeline):
    tokenizer = pipeline.tokenizer
    prompt = "A cat, a dog, a WOMAN surfing on café ponds, blue background"
    cut = cut_text(prompt, tokenizer)
    assert prompt.endswith(cut)
    kept = prompt.removesuffix(cut)
    read = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    again = tokenizer(kept).input_ids
    assert len(read) == len(again) == tokenizer.model_max_length
    assert read[:-2] == again[:-2]  # the last word may have lost its end


@pytest.mark.parametrize("prompt", ["", "a cat", "a cat  "])
def test_a_short_prompt_loses_nothing(pipeline, prompt):
    assert cut_text(prompt, pipeline.tokenizer) == ""


def test_words_that_training_never_had_are_named_once_in_order():
    assert unknown_words("A Zebra and a CAT: zebra, blue-green e", WORDS) == ["zebra", "green"]


def test_without_a_list_of_words_nothing_is_said(pipeline):
    assert prompt_hints("zebra", pipeline.tokenizer, frozenset()) == []


def test_hints_name_the_nearest_word_where_one_is_near(pipeline):
    hints = prompt_hints("sufring xylophone", pipeline.tokenizer, WORDS)
    assert any('"sufring"; the nearest that it knows is "surfing"' in hint for hint in hints)
    assert any(hint.endswith('the word "xylophone".') for hint in hints)

import pytest

from magicvideo.pipelines.hints import cut_text, prompt_hints, unknown_words

WORDS = frozenset(("cat", "surfing", "woman", "blue", "background"))


def test_the_truncated_words_are_those_that_the_encoder_does_not_read(pipeline):
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
def test_a_short_prompt_is_not_truncated(pipeline, prompt):
    assert cut_text(prompt, pipeline.tokenizer) == ""


def test_words_unknown_to_training_are_named_once_in_order():
    assert unknown_words("A Zebra and a CAT: zebra, blue-green e", WORDS) == ["zebra", "green"]


def test_without_a_word_list_there_are_no_hints(pipeline):
    assert prompt_hints("zebra", pipeline.tokenizer, frozenset()) == []


def test_hints_name_the_nearest_word_if_one_is_similar(pipeline):
    hints = prompt_hints("sufring xylophone", pipeline.tokenizer, WORDS)
    assert any(
        '"sufring" is not in the training captions; the most similar known word is "surfing"'
        in hint
        for hint in hints
    )
    assert any(hint == '"xylophone" is not in the training captions.' for hint in hints)


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("\U0001f98a", ["\U0001f98a"]),
        ("cat \U0001f98a\U0001f98a", ["\U0001f98a"]),
        ("\U0001f44d\U0001f3fd cat", ["\U0001f44d\U0001f3fd"]),  # with a skin tone
        (
            "\U0001f468\u200d\U0001f469\u200d\U0001f467",
            ["\U0001f468\u200d\U0001f469\u200d\U0001f467"],
        ),
        ("\u732b", ["\u732b"]),  # a cat in one ideograph
        ("\u732b surfing", ["\u732b"]),
        ("a cat, b", []),
    ],
)
def test_emoji_and_words_of_one_character_are_words(prompt, unknown):
    assert unknown_words(prompt, WORDS) == unknown


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("(cat:1.4)", 'has "(cat:1.4)"; weights in parentheses are not supported'),
        ("((cat)) surfing", 'has "((cat))"; weights in parentheses are not supported'),
        ("[cat:woman:0.5]", "square brackets are not supported"),
        ("cat BREAK woman", 'has "BREAK"; such keywords are not supported'),
        ("<lora:style:0.8> cat", "add --lora style.safetensors:0.8."),
        ("<lora:style> cat", "add --lora style.safetensors."),
    ],
)
def test_the_weighting_syntax_of_web_interfaces_gives_a_hint(pipeline, prompt, hint):
    hints = prompt_hints(prompt, pipeline.tokenizer, WORDS)
    assert any(hint in one for one in hints)
    assert not any('"lora"' in one or '"style"' in one for one in hints)


@pytest.mark.parametrize("prompt", ["a cat (blue background)", "woman, [cat]", "A CAT AND A WOMAN"])
def test_plain_punctuation_gives_no_hint(pipeline, prompt):
    hints = prompt_hints(prompt, pipeline.tokenizer, WORDS)
    assert not any("not read" in hint for hint in hints)

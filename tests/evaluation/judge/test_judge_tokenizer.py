import pytest

from magicvideo.evaluation.judge.network import UNKNOWN, WordTokenizer, count_words, split_words


def test_hyphens_join_words_and_commas_separate_them():
    caption = "Woman surfing, medium-light skin tone (one o'clock)"
    words = ["woman", "surfing", "medium-light", "skin", "tone", "one", "o'clock"]
    assert split_words(caption) == words


def test_frequent_words_come_first_and_ties_in_alphabetical_order():
    assert count_words(["b a c", "c b", "c"], limit=9) == ("c", "b", "a")
    assert count_words(["b a", "a b", "c"], limit=2) == ("a", "b")


def test_captions_become_padded_rows():
    tokenizer = WordTokenizer(("cat", "dog"), max_words=3)
    assert tokenizer(["dog cat", "cat", "a dog dog dog"]).tolist() == [
        [3, 2, 0],
        [2, 0, 0],
        [UNKNOWN, 3, 3],
    ]


@pytest.mark.parametrize("caption", ["", " , "])
def test_a_caption_without_words_is_one_unknown_token(caption):
    assert WordTokenizer(("cat",), max_words=3)([caption]).tolist() == [[UNKNOWN]]

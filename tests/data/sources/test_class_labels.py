import pytest

from magicvideo.data.sources.annotation_list import label_to_prompt


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("CleanAndJerk", "clean and jerk"),
        ("YoYo", "yo yo"),
        ("Surfing", "surfing"),
        ("riding_a-horse", "riding a horse"),
        ("watching TVShow_2", "watching tv show 2"),
        ("4x100Relay", "4x100 relay"),
    ],
)
def test_class_names_become_words(label, words):
    assert label_to_prompt(label) == words

from collections import Counter
from pathlib import Path

import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.prompts import (
    ReferenceClip,
    caption_of,
    class_counts,
    prompts_hash,
    sample_prompts,
)
from magicvideo.evaluation.benchmark.protocol import Benchmark


def clips(*captions):
    return [
        ReferenceClip(id=f"clip{number}", path=Path("x"), captions=texts)
        for number, texts in enumerate(captions)
    ]


def benchmark(values, **prompts):
    return Benchmark.model_validate(values | {"prompts": values["prompts"] | prompts})


def test_one_caption_of_each_clip(values):
    given = clips(*((f"a{n}", f"b{n}", f"c{n}") for n in range(40)))
    drawn = sample_prompts(benchmark(values, kind="one_caption", count=40), given)
    assert [wish.seed for wish in drawn] == list(range(40))
    assert sorted(int(wish.prompt[1:]) for wish in drawn) == list(range(40))
    assert set(Counter(wish.prompt[0] for wish in drawn)) == {"a", "b", "c"}
    assert drawn == sample_prompts(benchmark(values, kind="one_caption", count=40), given)
    few = sample_prompts(benchmark(values, kind="one_caption", count=13), given)
    assert len({wish.prompt[1:] for wish in few}) == 13


def test_all_captions(values):
    given = clips(("a", "b"), ("c",), ("d", "e", "f"))
    drawn = sample_prompts(benchmark(values, kind="all_captions", count=2), given)
    assert sorted(wish.prompt for wish in drawn) == ["a", "b", "c", "d", "e", "f"]


def test_classes_in_the_mix_of_the_clips(values):
    given = clips(*[("archery",)] * 5, *[("bowling",)] * 2, *[("surfing",)])
    drawn = sample_prompts(benchmark(values, kind="class_mix", count=20), given)
    # 12.5, 5 and 2.5: what rounding leaves goes to the first of equal remainders
    assert Counter(wish.prompt for wish in drawn) == {"archery": 13, "bowling": 5, "surfing": 2}


def test_classes_equally_often_in_words_of_the_protocol(values):
    given = clips(*[("archery",)] * 5, *[("bowling",)] * 2, *[("surfing",)])
    wanted = benchmark(
        values,
        kind="even_classes",
        count=6,
        wording="a video of {name}",
        sentences={"surfing": "A person rides a wave."},
    )
    found = Counter(wish.prompt for wish in sample_prompts(wanted, given))
    assert found == {"a video of archery": 2, "a video of bowling": 2, "A person rides a wave.": 2}
    with pytest.raises(UserError, match="7 prompts cannot be shared equally by the 3 classes"):
        sample_prompts(benchmark(values, kind="even_classes", count=7), given)


def test_real_clips_are_compared_with_the_words_of_the_prompts(values):
    (clip,) = clips(("wall pushups", "another"))
    sentences = {"WallPushups": "A man leans."}
    worded = benchmark(values, kind="class_mix", count=5, sentences=sentences)
    assert caption_of(worded, clip) == "A man leans."
    assert caption_of(benchmark(values, kind="all_captions", count=5), clip) == "wall pushups"


def test_prompts_are_counted_by_the_class_that_they_ask_for(values):
    given = clips(*[("archery",)] * 5, *[("wall pushups",)] * 2)
    wanted = benchmark(
        values, kind="class_mix", count=14, sentences={"WallPushups": "A man leans."}
    )
    texts = [wish.prompt for wish in sample_prompts(wanted, given)]
    assert class_counts(wanted, given, texts) == {"archery": 10, "wall pushups": 4}
    assert class_counts(wanted, given, ["A man leans.", "a cat"]) == {"wall pushups": 1}
    assert class_counts(benchmark(values, kind="all_captions"), given, texts) == {}


def test_the_hash_of_prompts_does_not_depend_on_their_order():
    assert (
        prompts_hash(["a", "b", "b"]) == prompts_hash(["b", "a", "b"]) != prompts_hash(["a", "b"])
    )

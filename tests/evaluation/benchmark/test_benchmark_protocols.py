import re

import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.protocol import Benchmark
from magicvideo.evaluation.benchmark.report import published_rows
from magicvideo.evaluation.protocol import read_any_protocol, read_protocol, shipped_protocols

BENCHMARKS = {
    "msrvtt-2990": ("one_caption", 2990, "msr-vtt"),
    "msrvtt-all": ("all_captions", 59794, "msr-vtt"),
    "ucf101-10k-class": ("class_mix", 10_000, "ucf-101"),
    "ucf101-100-per-class": ("even_classes", 101 * 100, "ucf-101"),
}


def test_these_come_with_the_package():
    assert set(shipped_protocols()) == {*BENCHMARKS, "emoji-heldout"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_shipped_benchmark_says_what_the_papers_do(name):
    found = read_any_protocol(name)
    assert isinstance(found, Benchmark)
    assert found.name == name
    assert (found.prompts.kind, found.prompts.count, found.data) == BENCHMARKS[name]
    assert (found.preprocessing.frames, found.preprocessing.stride, found.preprocessing.side) == (
        16,
        1,
        256,
    )
    with pytest.raises(UserError, match="is a benchmark"):
        read_protocol(name)


def test_every_class_of_ucf_101_has_a_sentence():
    for name in ("ucf101-10k-class", "ucf101-100-per-class"):
        sentences = read_any_protocol(name).prompts.sentences
        assert len(sentences) == len(set(sentences.values())) == 101
        assert sentences["apply eye makeup"] == "A woman puts on eye makeup with a small brush."
        assert {"handstand pushups", "tai chi", "yo yo", "skijet"} <= set(sentences)
        for sentence in sentences.values():
            assert re.fullmatch(r"(An? |[A-Z])[A-Za-z', -]+\.", sentence), sentence
            assert 4 <= len(sentence.split()) <= 14, sentence


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_a_benchmark_says_of_its_words_is_so(name):
    found = read_any_protocol(name)
    has_sentences = bool(found.prompts.sentences)
    assert ("asked for by a sentence of this package's own" in found.about) == has_sentences
    assert not re.search(r"the (prompt is|prompts are) .*bare name", found.about)


def test_a_list_of_sentences_that_is_not_there_is_refused(values, write):
    values["prompts"]["sentences"] = "hmdb51"
    with pytest.raises(UserError, match=r"prompts\.sentences is wrong: .*'hmdb51' is not a list"):
        read_any_protocol(str(write(values)))


def test_a_wrong_value_is_named(values, write):
    values["preprocessing"]["filter"] = "nearest"
    with pytest.raises(UserError, match=r"preprocessing\.filter is wrong"):
        read_any_protocol(str(write(values)))


def test_published_rows_have_sources_and_both_versions_of_the_paper():
    for data, expected in (("msr-vtt", (1290, 998)), ("ucf-101", (699, 655))):
        rows = published_rows(data)
        assert all(row.source for row in rows)
        ours = [row.fvd for row in rows if re.fullmatch(r"MagicVideo v\d", row.model)]
        assert tuple(ours) == expected
        assert len({row.model for row in rows}) == len(rows)
    assert published_rows(None) == []


def test_distances_by_features_of_clip_have_a_column_of_their_own():
    rows = [row for data in ("msr-vtt", "ucf-101") for row in published_rows(data)]
    found = {row.model: (row.clip_fid, row.fid) for row in rows if row.clip_fid}
    assert found == {"PYoCo": (9.73, 22.14), "Snap Video (512x288)": (9.35, None)}
    assert not any("features of CLIP" in row.note for row in rows)

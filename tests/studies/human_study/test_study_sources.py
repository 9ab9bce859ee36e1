import shutil

import pytest

from magicvideo.atomic_io import hash_folder
from magicvideo.errors import UserError
from studies.human_study.study import describe_source, match_videos

PROMPTS = ["a cat", "a dog", "a red heart", "two <b>boats</b>", "fox & hen"]


def names(paths):
    return [path.name for path in paths]


def test_videos_are_found_by_their_stored_prompt(places):
    assert names(match_videos(places["a"], PROMPTS[::-1])) == [
        f"clip{number}.mp4" for number in (4, 3, 2, 1, 0)
    ]


def test_videos_without_a_prompt_are_found_by_their_names(places):
    assert names(match_videos(places["b"], PROMPTS)) == [
        "a-cat-0.mp4",
        "a-dog-1.mp4",
        "a-red-heart-2.mp4",
        "two-b-boats-b-3.mp4",
        "fox-hen-4.mp4",
    ]


def test_a_number_at_an_end_may_belong_to_the_prompt(places, tmp_path):
    for name in ("room-101", "3-room-102", "7-hens-9"):
        shutil.copy(places["b"] / "a-cat-0.mp4", tmp_path / f"{name}.mp4")
    found = match_videos(tmp_path, ["7 hens", "room 101", "room 102"])
    assert names(found) == ["7-hens-9.mp4", "room-101.mp4", "3-room-102.mp4"]


def test_a_repeated_prompt_gets_its_videos_in_order(places, tmp_path):
    for seed in (5, 6, 7):
        shutil.copy(places["b"] / "a-cat-0.mp4", tmp_path / f"a-cat-{seed}.mp4")
    assert names(match_videos(tmp_path, ["a cat"] * 3)) == [
        "a-cat-5.mp4",
        "a-cat-6.mp4",
        "a-cat-7.mp4",
    ]
    with pytest.raises(UserError, match="has 3 videos of 'a cat', but the prompts list it 2"):
        match_videos(tmp_path, ["a cat"] * 2)


def test_what_is_missing_is_named(places, tmp_path):
    with pytest.raises(UserError, match=r"has 0 videos of 'a bee'.* a name like a-bee\.mp4"):
        match_videos(places["b"], [*PROMPTS, "a bee"])
    with pytest.raises(UserError, match="is not a model folder and has no video"):
        match_videos(tmp_path, PROMPTS)
    with pytest.raises(UserError, match="is not a folder; give a model folder"):
        describe_source(tmp_path / "nowhere", PROMPTS)


def test_the_hash_of_a_source_depends_on_its_videos(places, tmp_path):
    before = describe_source(places["b"], PROMPTS)
    assert (before.name, before.kind) == ("cunning-beta", "videos")
    copy = tmp_path / "cunning-beta"
    shutil.copytree(places["b"], copy)
    assert describe_source(copy, PROMPTS) == before
    shutil.copy(copy / "a-dog-1.mp4", copy / "a-cat-0.mp4")
    (copy / "a-bee.mp4").write_bytes(b"not asked for")
    assert describe_source(copy, PROMPTS[2:]) == describe_source(places["b"], PROMPTS[2:])
    (copy / "a-dog-1.mp4").write_bytes((copy / "a-dog-1.mp4").read_bytes() + b"changed")
    assert describe_source(copy, PROMPTS).hash != before.hash


def test_a_model_is_identified_by_its_hash(tiny_model, tmp_path):
    source = describe_source(tiny_model, PROMPTS)
    assert (source.kind, source.hash) == ("model", hash_folder(tiny_model))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="has no SHA256SUMS"):
        describe_source(tmp_path, PROMPTS)

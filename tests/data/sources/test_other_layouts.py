"""Layouts of other trainers give the same clips and captions as there."""

import json

import pytest

from magicvideo.data.sources.folder import scan
from magicvideo.errors import UserError


def put(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def texts(folder):
    return {clip.id: clip.text for clip in scan(folder).clips}


EXPECTED = {"videos/1": "a fox, running", "videos/2": "a boat"}


@pytest.mark.parametrize("prompts", ["prompt", "prompts", "captions"])
def test_two_files_line_by_line(tmp_path, prompts):
    put(tmp_path, videos__1_DOT_mp4="", videos__2_DOT_mp4="")
    put(tmp_path, videos_DOT_txt="\ufeffvideos/1.mp4\r\nvideos/2.mp4\r\n")
    put(tmp_path, **{f"{prompts}_DOT_txt": "a fox,  running\na boat\n\n"})
    assert texts(tmp_path) == EXPECTED
    assert scan(tmp_path).skipped == []


def test_two_files_of_different_lengths_are_refused(tmp_path):
    put(tmp_path, videos_DOT_txt="a.mp4\nb.mp4\n", prompt_DOT_txt="a fox\n")
    with pytest.raises(UserError, match=r"Line 2 of .*videos\.txt is 'b\.mp4', and of prompt\.txt"):
        scan(tmp_path)


@pytest.mark.parametrize(
    "heading", ["file_name,text", "video,prompt", "video_path,caption", "Path;Cap", "file\ttext"]
)
def test_columns_and_separators(tmp_path, heading):
    put(tmp_path, videos__1_DOT_mp4="", videos__2_DOT_mp4="")
    comma = next(mark for mark in ";\t," if mark in heading)
    rows = [heading.lower(), f'videos/1.mp4{comma}"a fox, running"', f"videos/2.mp4{comma}a boat"]
    put(tmp_path, metadata_DOT_csv="\n".join(rows).encode("utf-8-sig"))
    assert texts(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    "content",
    [
        [
            {"path": "videos/1.mp4", "cap": ["a fox, running"]},
            {"path": "videos/2.mp4", "cap": "a boat"},
        ],
        {"videos/1.mp4": "a fox, running", "videos/2.mp4": "a boat"},
        {"videos/1": {"caption": "a fox, running"}, "/old/videos/2": {"caption": "a boat"}},
    ],
)
def test_one_json_file(tmp_path, content):
    put(tmp_path, videos__1_DOT_mp4="", videos__2_DOT_mp4="")
    put(tmp_path, metadata_DOT_json=json.dumps(content))
    assert texts(tmp_path) == EXPECTED


def test_lists_are_read_by_their_content_whatever_their_suffix(tmp_path):
    put(tmp_path, videos__1_DOT_mp4="", videos__2_DOT_mp4="")
    rows = [{"video": f"{name}.mp4", "prompt": text} for name, text in EXPECTED.items()]
    put(tmp_path, metadata_DOT_json="\n".join(map(json.dumps, rows)))
    assert texts(tmp_path) == EXPECTED
    (tmp_path / "metadata.json").unlink()
    put(tmp_path, METADATA_DOT_JSONL=json.dumps(rows))
    assert texts(tmp_path) == EXPECTED


@pytest.mark.parametrize("suffix", ["txt", "caption", "mp4.txt", "mp4.caption", "TXT"])
def test_a_text_file_with_the_name_of_the_clip_has_its_caption(tmp_path, suffix):
    put(tmp_path, a_DOT_mp4="")
    (tmp_path / f"a.{suffix}").write_text("a fox\n")
    assert texts(tmp_path) == {"a": "a fox"}
    assert scan(tmp_path).skipped == []


def test_of_two_text_files_one_is_used_and_the_other_is_named(tmp_path):
    put(tmp_path, a_DOT_mp4="", a_DOT_txt="a fox", a_DOT_caption="a cat")
    source = scan(tmp_path)
    assert [clip.text for clip in source.clips] == ["a fox"]
    (skipped,) = source.skipped
    assert skipped.file == "a.caption"
    assert "another text file counts" in skipped.reason


def test_a_list_of_videos_without_captions_says_what_is_missing(tmp_path):
    put(tmp_path, a_DOT_mp4="", videos_DOT_txt="a.mp4\n")
    reasons = {skipped.file: skipped.reason for skipped in scan(tmp_path).skipped}
    assert reasons["videos.txt"] == "a list of captions has two files, videos.txt and prompts.txt"


def test_captions_in_utf_16_of_windows_are_read(tmp_path):
    put(tmp_path, a_DOT_mp4="", b_DOT_mp4="", a_DOT_txt="ein Füchslein".encode("utf-16"))
    (tmp_path / "b.txt").write_bytes(b"\xfe\xff" + "狐".encode("utf-16-be"))
    assert texts(tmp_path) == {"a": "ein Füchslein", "b": "狐"}


def test_sparse_captions_and_endless_lines_are_not_read_into_memory(tmp_path):
    put(tmp_path, a_DOT_mp4="", a_DOT_txt="")
    with (tmp_path / "a.txt").open("r+b") as file:
        file.truncate(3 << 30)
    (skipped,) = scan(tmp_path).skipped
    assert "a.txt has 3,221,225,472 bytes, more than" in skipped.reason
    with (tmp_path / "metadata.jsonl").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(UserError, match="characters in line 1, the limit"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.json"])
def test_deeply_nested_json_gives_a_clear_error(tmp_path, name):
    put(tmp_path, a_DOT_mp4="")
    (tmp_path / name).write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match=f"{name}"):
        scan(tmp_path)


def test_a_caption_that_is_too_long_is_refused(tmp_path):
    put(tmp_path, a_DOT_mp4="", a_DOT_txt="word " * 5000)
    (skipped,) = scan(tmp_path).skipped
    assert skipped.reason == "its caption has 24,999 characters, more than 20,000"


def test_headings_in_capitals_and_with_spaces_are_read(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text("File_Name, Text\na.mp4, a fox\n")
    assert [clip.text for clip in scan(tmp_path).clips] == ["a fox"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metadata.csv", 'file_name,text\na.mp4,"a fox\nb.mp4,a cat\n', "is not CSV"),
        ("metadata.csv", "file_name,text,text\na.mp4,a fox,\n", "has the column text twice"),
        ("metadata.jsonl", '{"file_name": "a.mp4", "text": null}\n', "text is null, which is no"),
        ("metadata.jsonl", '{"file_name": 5, "text": "a fox"}\n', "file_name is 5, which is no"),
    ],
)
def test_lists_that_would_lose_a_text_are_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        scan(tmp_path)


def test_what_is_no_list_no_text_and_no_video_says_what_to_do(tmp_path):
    for name in ("a.mp4", "data.jsonl", "train.parquet", "00000.tar"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"\x00\x01fox")
    found = {skipped.file: skipped.reason for skipped in scan(tmp_path).skipped}
    assert found.pop("a.mp4").startswith("its caption has control characters")
    assert found.pop("00000.tar") == "an archive; unpack it first"
    assert set(found) == {"data.jsonl", "train.parquet"}
    assert all("metadata.jsonl, metadata.csv, metadata.json at" in text for text in found.values())

import json
import os

import pytest

from magicvideo.data.sources.folder import scan
from magicvideo.errors import UserError
from magicvideo.printable import printable


def make(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def texts(source):
    return {candidate.id: candidate.text for candidate in source.clips}


def reasons(source):
    return {skipped.file: skipped.reason for skipped in source.skipped}


def test_captions_are_read_from_text_files_beside_clips(tmp_path):
    make(
        tmp_path,
        a_DOT_mp4="",
        a_DOT_txt="\ufeffa  dog\n runs\n",
        sub__b_DOT_WEBM="",
        sub__b_DOT_txt="a cat",
        c_DOT_gif="",
        d_DOT_mkv="",
        d_DOT_txt=" \n",
        e_DOT_avi="",
        e_DOT_txt=b"\xff\xff",
        notes_DOT_txt="no clip has this name",
        photo_DOT_jpg="",
        _DOT_hidden_DOT_mp4="",
        _DOT_git__x_DOT_mp4="",
    )
    source = scan(tmp_path)
    assert texts(source) == {"a": "a dog runs", "sub/b": "a cat"}
    assert {candidate.split for candidate in source.clips} == {"train"}
    assert not any(candidate.loops for candidate in source.clips)
    found = reasons(source)
    assert found.pop("c.gif") == "no caption: neither c.txt nor a line in the metadata"
    assert found.pop("d.mkv") == "its caption is empty"
    assert found.pop("e.avi") == "e.txt is not UTF-8 text; save it as UTF-8"
    assert found.pop("notes.txt") == (
        "text, and no video of the same name next to it, or another text file counts"
    )
    assert found.pop("photo.jpg").startswith("no video by its suffix (.3gp, .apng, .avi")
    assert found == {}


ROWS = [
    {"file_name": "a.mp4", "text": "a dog", "split": "test"},
    {"file_name": "sub/b.mp4", "text": 'a "cat", white', "split": "train"},
    {"file_name": "gone.mp4", "text": "nothing"},
    {"file_name": "../outside.mp4", "text": "nothing"},
    {"file_name": "/etc/passwd.mp4", "text": "nothing"},
    {"file_name": "a.mp4", "text": "again"},
]


def write_rows(folder, form):
    if form == "jsonl":
        lines = [json.dumps(row) for row in ROWS]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
        return
    lines = ["file_name,split,text"]
    for row in ROWS:
        text = row["text"].replace('"', '""')
        lines.append(f'{row["file_name"]},{row.get("split", "")},"{text}"')
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8-sig")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_metadata_gives_captions_and_splits(tmp_path, form):
    folder = tmp_path / "clips"
    make(
        folder,
        a_DOT_mp4="",
        a_DOT_txt="passed over",
        sub__b_DOT_mp4="",
        c_DOT_mp4="",
        c_DOT_txt="own words",
    )
    make(tmp_path, outside_DOT_mp4="")
    write_rows(folder, form)
    source = scan(folder)
    assert texts(source) == {"a": "a dog", "sub/b": 'a "cat", white', "c": "own words"}
    assert {one.id: one.split for one in source.clips} == {
        "a": "heldout",
        "sub/b": "train",
        "c": "train",
    }
    assert reasons(source) == {
        "gone.mp4": "in the metadata, but there is no file",
        "../outside.mp4": "in the metadata, but there is no file",
        "/etc/passwd.mp4": "in the metadata, but there is no file",
        "a.mp4": f"listed again in line {6 + (form == 'csv')}, ignored",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.mp4"}', "line 1 has no text"),
        (
            "metadata.jsonl",
            '{"file_name": 3, "text": "x"}',
            "file_name is 3, which is no",
        ),
        ("metadata.jsonl", '\n{"file_name": "a', "line 2 is not JSON"),
        ("metadata.jsonl", "[1]", "line 1 is not a JSON object"),
        ("metadata.jsonl", b"\xff\xff", "is not UTF-8"),
        ("metadata.csv", "name,words\na.mp4,x\n", "it has name, words"),
        ("metadata.csv", "file_name,text\na.mp4\n", "line 2 has no text"),
        ("metadata.csv", "file_name,text\na.mp4,a,b\n", "line 2 has more fields than the heading"),
        ("metadata.csv", f'file_name,text\na.mp4,"{"x" * 200_000}"\n', "is not CSV"),
        ("metadata.csv", "file_name,text,split\na.mp4,x,all\n", "'all' is none of train, val"),
    ],
)
def test_broken_metadata_is_named_by_line(tmp_path, name, content, message):
    make(tmp_path, a_DOT_mp4="", **{name.replace(".", "_DOT_"): content})
    with pytest.raises(UserError, match=message):
        scan(tmp_path)


def test_two_metadata_files_are_one_too_many(tmp_path):
    make(tmp_path, metadata_DOT_csv="file_name,text\n", metadata_DOT_jsonl="")
    with pytest.raises(UserError, match="keep one list of captions"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["\0.mp4", "\ud800.mp4"])
def test_impossible_file_names_are_skipped(tmp_path, name):
    make(tmp_path, metadata_DOT_jsonl=json.dumps({"file_name": name, "text": "x"}))
    (skipped,) = scan(tmp_path).skipped
    assert (skipped.file, skipped.reason) == (
        printable(name),
        "in the metadata, but there is no file",
    )


def test_captions_that_cannot_be_encoded_are_skipped(tmp_path):
    make(tmp_path, a_DOT_mp4="", metadata_DOT_jsonl='{"file_name": "a.mp4", "text": "\\ud800"}')
    assert reasons(scan(tmp_path)) == {"a.mp4": "its caption is not UTF-8 text"}


def test_names_that_are_not_utf8_are_skipped(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    assert reasons(scan(tmp_path)) == {"caf\\xe9.mp4": "its name is not UTF-8; rename it"}


def test_an_endless_caption_file_is_not_read(tmp_path):
    make(tmp_path, a_DOT_mp4="")
    os.mkfifo(tmp_path / "a.txt")
    assert reasons(scan(tmp_path)) == {"a.mp4": "a.txt is not a regular file"}


def test_clips_that_differ_only_in_suffix_have_different_ids(tmp_path):
    make(tmp_path, a_DOT_mp4="", a_DOT_gif="", a_DOT_txt="both", b_DOT_mp4="", b_DOT_txt="one")
    assert sorted(texts(scan(tmp_path))) == ["a.gif", "a.mp4", "b"]


def test_a_fraction_is_held_out_unless_the_metadata_has_splits(tmp_path):
    for number in range(40):
        make(tmp_path, **{f"clip{number}_DOT_mp4": "", f"clip{number}_DOT_txt": "x"})
    rows = [
        {"file_name": f"clip{number}.mp4", "text": "x", "split": "train"} for number in range(20)
    ]
    make(tmp_path, metadata_DOT_jsonl="\n".join(map(json.dumps, rows)))
    source = scan(tmp_path, holdout=0.5)
    heldout = {int(one.id[4:]) for one in source.clips if one.split == "heldout"}
    assert min(heldout) >= 20
    assert 4 < len(heldout) < 16
    assert "0.5" in source.split_rule


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_holdout_outside_0_to_1_is_refused(tmp_path, share):
    with pytest.raises(UserError, match="is not a fraction"):
        scan(tmp_path, share)

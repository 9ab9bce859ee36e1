"""File names and list entries that differ between systems, and links."""

import json
import os
import unicodedata

import pytest

from magicvideo.data.sources import folder, videofolder
from magicvideo.data.sources.video_index import (
    VideoIndex,
    display_path,
    list_files,
    name_key,
    printable,
)
from magicvideo.errors import UserError

CAFE = unicodedata.normalize("NFC", "café.mp4")
CAFE_ON_A_MAC = unicodedata.normalize("NFD", CAFE)


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words")


def write_rows(path, *names):
    rows = ({"file_name": name, "text": f"words {place}"} for place, name in enumerate(names))
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CAFE, CAFE_ON_A_MAC),
        ("Sub/A.MP4", "sub\\a.mp4"),
        ("./sub/../sub//a.mp4", "sub/a.mp4"),
        ("STRASSE.mp4", "straße.mp4"),
    ],
)
def test_spellings_of_one_name_have_one_key(one, other):
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize("name", ["../a.mp4", "sub/../../a.mp4", "a.mp4/..", "b/a.mp4"])
def test_other_names_have_other_keys(name):
    assert name_key(name) != name_key("a.mp4")


@pytest.mark.parametrize(
    ("on_disk", "listed"),
    [
        (CAFE_ON_A_MAC, CAFE),
        (CAFE, CAFE_ON_A_MAC),
        ("sub/a.mp4", "sub\\a.mp4"),
        ("sub/a.mp4", "SUB/a.MP4"),
        ("sub/a.mp4", "./sub/../sub/a.mp4"),
        ("sub/a.mp4", "{folder}/sub/a.mp4"),
        ("sub/a.mp4", "C:\\old\\videos\\sub\\a.mp4"),
        ("sub/a.mp4", "/mnt/elsewhere/videos/sub/a.mp4"),
    ],
)
def test_a_list_from_another_system_names_the_file(tmp_path, on_disk, listed):
    put(tmp_path / on_disk)
    write_rows(tmp_path / "metadata.jsonl", listed.replace("{folder}", str(tmp_path)))
    source = folder.scan(tmp_path)
    assert [(clip.path, clip.text) for clip in source.clips] == [(tmp_path / on_disk, "words 0")]
    assert source.skipped == []


def test_ids_are_the_same_on_every_system(tmp_path):
    for name, spelling in (("linux", CAFE), ("mac", CAFE_ON_A_MAC)):
        put(tmp_path / name / spelling)
        write_rows(tmp_path / name / "metadata.jsonl", CAFE)
    ids = [folder.scan(tmp_path / name).clips[0].id for name in ("linux", "mac")]
    assert ids == ["café", "café"]


def test_files_that_differ_only_in_case_are_distinguished(tmp_path):
    put(tmp_path / "a.mp4", tmp_path / "A.mp4")
    write_rows(tmp_path / "metadata.jsonl", "A.mp4", "a.mp4")
    texts = {clip.path.name: clip.text for clip in folder.scan(tmp_path).clips}
    assert texts == {"A.mp4": "words 0", "a.mp4": "words 1"}
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.txt").write_text("small")
    (tmp_path / "A.txt").write_text("large")
    texts = {clip.path.name: clip.text for clip in folder.scan(tmp_path).clips}
    assert texts == {"A.mp4": "large", "a.mp4": "small"}


def test_captions_in_files_with_uppercase_names_belong_to_their_videos(tmp_path):
    put(tmp_path / "A.MP4", tmp_path / "A.TXT")
    source = folder.scan(tmp_path)
    assert [(clip.id, clip.text) for clip in source.clips] == [("A", "words")]
    assert source.skipped == []


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    videos = tmp_path / "videos"
    put(tmp_path / "store/more/a.mp4", tmp_path / "store/more/a.txt", videos / "own/b.mp4")
    put(videos / "own/b.txt")
    (videos / "more").symlink_to("../store/more")
    (videos / "again").symlink_to("own")
    (videos / "own/loop").symlink_to("..")
    (tmp_path / "store/more/loop").symlink_to(".")
    source = folder.scan(videos)
    assert [clip.file for clip in source.clips] == ["more/a.mp4", "own/b.mp4"]
    assert source.skipped == []


def test_a_link_to_a_parent_folder_is_named_and_not_followed(tmp_path):
    videos = tmp_path / "videos"
    put(tmp_path / "private.mp4", tmp_path / "private.txt", videos / "a.mp4", videos / "a.txt")
    (videos / "up").symlink_to(tmp_path)
    source = folder.scan(videos)
    assert [clip.file for clip in source.clips] == ["a.mp4"]
    assert [skipped.file for skipped in source.skipped] == ["up"]


@pytest.mark.parametrize("scan", [folder.scan, videofolder.scan])
def test_linked_files_with_metadata_are_read_as_in_the_hubs_cache(tmp_path, scan):
    snapshot = tmp_path / "snapshots/1/train"
    put(tmp_path / "blobs/0123")
    snapshot.mkdir(parents=True)
    (snapshot / "a.mp4").symlink_to("../../../blobs/0123")
    write_rows(tmp_path / "blobs/4567", "a.mp4")
    top = snapshot.parent if scan is videofolder.scan else snapshot
    (snapshot / "metadata.jsonl").symlink_to("../../../blobs/4567")
    (clip,) = scan(top).clips
    assert clip.text == "words 0"


def test_a_linked_caption_is_read_only_beside_its_linked_video(tmp_path):
    put(tmp_path / "blobs/video", tmp_path / "blobs/caption", tmp_path / "private")
    videos = tmp_path / "videos"
    put(videos / "b.mp4")
    (videos / "a.mp4").symlink_to("../blobs/video")
    (videos / "a.txt").symlink_to("../blobs/caption")
    (videos / "b.txt").symlink_to("../private")
    source = folder.scan(videos)
    assert [clip.file for clip in source.clips] == ["a.mp4"]
    (skipped,) = source.skipped
    assert (skipped.file, skipped.reason) == (
        "b.mp4",
        "b.txt is a link to a file outside the folder; copy the file",
    )


def test_loops_of_links_are_named(tmp_path):
    put(tmp_path / "a.mp4")
    (tmp_path / "a.txt").symlink_to("a.txt")
    (tmp_path / "b.mp4").symlink_to("c.mp4")
    (tmp_path / "c.mp4").symlink_to("b.mp4")
    write_rows(tmp_path / "metadata.jsonl", "b.mp4")
    source = folder.scan(tmp_path)
    # that b.mp4 cannot be read is noticed when it is decoded
    assert [clip.file for clip in source.clips] == ["b.mp4"]
    reasons = {skipped.file: skipped.reason for skipped in source.skipped}
    assert reasons["a.mp4"].startswith("a.txt cannot be read")


def test_no_listed_name_selects_a_file_outside_the_folder(tmp_path):
    videos = tmp_path / "videos"
    put(tmp_path / "secret.mp4", videos / "a.mp4")
    index = VideoIndex(videos)
    for name in ("../secret.mp4", str(tmp_path / "secret.mp4"), "..\\secret.mp4", "x/../../secret"):
        assert index.find(name) is None
        assert index.find_video(name) is None


def test_names_are_printed_without_control_characters(tmp_path):
    name = "\x1b[31mred\u202e.mp4"
    put(tmp_path / name)
    assert display_path(tmp_path / name, tmp_path) == "\\x1b[31mred\\u202e.mp4"
    assert printable("👩‍🚀 café 狐") == "👩‍🚀 café 狐"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


def test_a_link_to_a_whole_disk_is_refused(tmp_path, monkeypatch):
    put(*(tmp_path / f"{number}.mp4" for number in range(5)))
    monkeypatch.setattr("magicvideo.data.sources.video_index.MAX_FILES", 4)
    with pytest.raises(UserError, match="more than 4 files; name a smaller folder"):
        list_files(tmp_path)

import json

import pytest

from magicvideo.data.sources.registry import open_source
from magicvideo.data.sources.videofolder import scan
from magicvideo.errors import UserError


def write_rows(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def reasons(source):
    return {skipped.file: skipped.reason for skipped in source.skipped}


def test_metadata_in_split_folders_gives_captions(tmp_path, put_clips, prepared_clips):
    folder = tmp_path / "set"
    put_clips(folder, "train/a.mp4", "train/more/b.mp4", "train/c.mp4", "train/d.mp4")
    put_clips(folder, "validation/videos/e.mp4", "test/f.mp4", "test/f.gif")
    write_rows(
        folder / "train/metadata.jsonl",
        {"file_name": "a.mp4", "text": "a  fox", "size": 3},
        {"file_name": "more/b.mp4", "text": "a boat"},
        {"file_name": "c.mp4", "text": " "},
        {"file_name": "a.mp4", "text": "again"},
        {"file_name": "gone.mp4", "text": "x"},
        {"file_name": "../../outside.mp4", "text": "x"},
    )
    (folder / "validation/metadata.csv").write_text("file_name,caption\nvideos/e.mp4,a lamp\n")
    write_rows(folder / "test/metadata.jsonl", {"file_name": "f.mp4", "caption": "a tree"})
    (folder / "README.md").write_text("words")
    source = open_source(folder)
    assert source.name == "videofolder"
    clips, skipped = prepared_clips(source)
    assert {name: (clip.split, clip.text) for name, clip in clips.items()} == {
        "train/a": ("train", "a fox"),
        "train/more/b": ("train", "a boat"),
        "validation/videos/e": ("validation", "a lamp"),
        "test/f": ("heldout", "a tree"),
    }
    assert skipped.pop("README.md").startswith("no video by its suffix")
    assert skipped == {
        "train/c.mp4": "its caption is empty",
        "train/d.mp4": "no line in the metadata",
        "test/f.gif": "no line in the metadata",
        "train/a.mp4": "listed again in train/metadata.jsonl, line 4, ignored",
        "gone.mp4": "in train/metadata.jsonl, line 5, but there is no file",
        "../../outside.mp4": "in train/metadata.jsonl, line 6, but there is no file",
    }


def test_class_folders_are_captions_where_there_is_no_metadata(tmp_path, put_clips):
    put_clips(tmp_path, "data/train/RidingHorse/a.mp4", "data/train/walking_dog/a.mp4")
    put_clips(tmp_path, "data/eval/RidingHorse/b.mp4", "data/train/c.mp4")
    source = open_source(tmp_path)
    assert source.name == "videofolder"
    assert {one.id: (one.split, one.text) for one in source.clips} == {
        "data/train/RidingHorse/a": ("train", "riding horse"),
        "data/train/walking_dog/a": ("train", "walking dog"),
        "data/eval/RidingHorse/b": ("heldout", "riding horse"),
    }
    assert reasons(source) == {"data/train/c.mp4": "no metadata, and no class folder"}


def test_class_folders_without_splits_can_be_selected(tmp_path, put_clips):
    put_clips(tmp_path, "cat/a.mp4", "cat/a.webm", "test/b.mp4")
    source = open_source(tmp_path, kind="videofolder")
    assert {one.id: one.text for one in source.clips} == {
        "cat/a.mp4": "cat",
        "cat/a.webm": "cat",
    }
    write_rows(tmp_path / "metadata.jsonl", {"file_name": "test/b.mp4", "text": "a bird"})
    assert open_source(tmp_path).name == "folder"
    (one,) = open_source(tmp_path, kind="videofolder").clips
    assert (one.text, one.split) == ("a bird", "heldout")


def test_a_folder_with_captions_beside_the_videos_is_a_plain_folder(tmp_path, put_clips):
    put_clips(tmp_path, "train/a.mp4")
    (tmp_path / "train/a.txt").write_text("a fox")
    assert open_source(tmp_path).name == "folder"


def test_a_fraction_of_train_can_be_held_out(tmp_path, put_clips):
    put_clips(tmp_path, *(f"train/fox/{number}.mp4" for number in range(30)), "val/fox/x.mp4")
    splits = [one.split for one in scan(tmp_path, 0.4).clips]
    assert splits.count("validation") == 1
    assert 5 < splits.count("heldout") < 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.mp4"}', "line 1 has no text"),
        (
            "metadata.jsonl",
            '{"file_name": "a.mp4", "text": 3}',
            "line 1: text is 3, which is",
        ),
        ("metadata.jsonl", '{"text": "x"}\n', "line 1 has no file_name"),
        ("metadata.jsonl", '{"file_name": "a.mp4", "text": "x"}\n{', "line 2 is not JSON"),
        ("metadata.csv", "file_name,text\na.mp4,x,y\n", "line 2 has more fields"),
        ("metadata.parquet", "PAR1", "is Parquet, which is not read"),
    ],
)
def test_broken_metadata_is_named_by_line(tmp_path, put_clips, name, content, message):
    put_clips(tmp_path, "train/a.mp4")
    (tmp_path / "train" / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)


def test_a_folder_without_a_video_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"no video in it or in folders .*it holds train"):
        open_source(tmp_path, kind="videofolder")

import pytest

from magicvideo.data.sources.fluent_emoji import MARKER
from magicvideo.data.sources.registry import layouts, open_source
from magicvideo.errors import UserError


def test_layouts_are_detected_by_the_contents_of_the_folder(shapes, tmp_path):
    assert open_source(shapes).name == "folder"
    (tmp_path / MARKER).touch()
    source = open_source(tmp_path)
    assert (source.name, len(source.clips), len(source.skipped)) == ("fluent-emoji", 0, 2014)
    with pytest.raises(UserError, match="without a split of their own, which fluent-emoji has"):
        open_source(tmp_path, holdout=0.1)


def test_a_layout_can_be_named(tmp_path, put_clips):
    put_clips(tmp_path, "train/fox/a.mp4")
    assert open_source(tmp_path).name == "videofolder"
    source = open_source(tmp_path, kind="folder")
    assert (source.name, len(source.clips), len(source.skipped)) == ("folder", 0, 1)
    every = "fluent-emoji, msr-vtt, ucf101, webvid, clip-list, videofolder, folder"
    with pytest.raises(UserError, match=f"--source 'emoji' is not known; take {every}"):
        open_source(tmp_path, kind="emoji")
    with pytest.raises(UserError, match="so it holds no fetched emoji"):
        open_source(tmp_path, kind="fluent-emoji")


def test_no_layout_matches_a_plain_folder_of_videos(shapes):
    assert [layout.name for layout in layouts() if layout.matches(shapes)] == ["folder"]


def test_a_missing_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no file"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        open_source(tmp_path / "absent")

import os

from magicvideo.data.sources.video_index import VideoIndex, list_files, summarize_folder


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_videos_are_found_by_the_names_of_lists(tmp_path):
    make(tmp_path, "x/a.mp4", "y/a.mp4", "y/b.WEBM", "c.d.avi", "z/list.csv", ".trash/e.mp4")
    videos = VideoIndex(tmp_path)
    assert videos.find_video("a") == tmp_path / "x/a.mp4"
    assert videos.find_video("y/a.mp4") == tmp_path / "y/a.mp4"
    assert videos.find_video("b.avi") == tmp_path / "y/b.WEBM"
    assert videos.find_video("c.d") == tmp_path / "c.d.avi"
    for name in ("e", "list", "z/a", "../x/a", "", "\0", "\ud800"):
        assert videos.find_video(name) is None


def test_a_video_with_the_listed_suffix_is_preferred(tmp_path):
    make(tmp_path, "a.avi", "sub/a.mp4")
    assert VideoIndex(tmp_path).find_video("a.mp4") == tmp_path / "sub/a.mp4"


def test_unreferenced_videos_are_reported(tmp_path):
    make(tmp_path, "a.mp4", "b.mp4", "c.gif", "d.txt")
    (tmp_path / os.fsdecode(b"\xff.mp4")).touch()
    videos = VideoIndex(tmp_path)
    videos.find_video("b")
    assert videos.unreferenced() == [tmp_path / "a.mp4", tmp_path / "c.gif"]


def test_the_contents_of_a_folder_are_summarised(tmp_path):
    assert summarize_folder(tmp_path) == "it is empty"
    make(tmp_path, "b", "a", "c/d")
    assert summarize_folder(tmp_path, most=2) == "it holds a, b and 1 more"
    assert list_files(tmp_path) == [tmp_path / "a", tmp_path / "b", tmp_path / "c/d"]

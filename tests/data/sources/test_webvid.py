import re

import pytest

from magicvideo.data.sources.registry import open_source
from magicvideo.data.sources.webvid import scan
from magicvideo.errors import UserError

HEAD = "videoid,contentUrl,duration,page_dir,name\n"
TRAIN = (
    HEAD
    + '11,https://x/11.mp4,PT00H00M10S,001_050,"Fox, running  in snow"\n'
    + "12,https://x/12.mp4,PT00H00M07S,001_050,A boat\n"
    + "13,https://x/13.mp4,PT00H00M09S,051_100,Never fetched\n"
    + "14,https://x/14.mp4,PT00H00M08S,051_100,\n"
    + "11,https://x/11.mp4,PT00H00M10S,001_050,Again\n"
)
VAL = HEAD + "21,https://x/21.mp4,PT00H00M05S,,A lamp\n"


@pytest.fixture
def webvid(tmp_path, put_clips):
    folder = tmp_path / "webvid"
    put_clips(folder, "videos/001_050/11.mp4", "videos/12.mp4", "051_100/14.mp4", "21.mp4", "9.mp4")
    put_clips(folder, "videos/002_999/11.mp4")  # another page's
    (folder / "results_2M_train.csv").write_text(TRAIN)
    (folder / "results_2M_val.csv").write_text(VAL)
    (folder / "other.csv").write_text("a,b\n1,2\n")
    return folder


def test_listed_videos_become_clips(webvid, prepared_clips):
    source = open_source(webvid)
    assert source.name == "webvid"
    assert {one.id: one.file for one in source.clips}["11"] == "videos/001_050/11.mp4"
    clips, skipped = prepared_clips(source)
    assert {name: (clip.text, clip.split) for name, clip in clips.items()} == {
        "11": ("Fox, running in snow", "train"),
        "12": ("A boat", "train"),
        "21": ("A lamp", "heldout"),
    }
    lists = "results_2M_train.csv, results_2M_val.csv"
    assert skipped.pop("051_100/14.mp4") == "no caption (results_2M_train.csv, line 5)"
    again = "listed again in results_2M_train.csv, line 6, ignored"
    assert skipped.pop("videos/001_050/11.mp4") == again
    assert list(skipped) == [lists]
    reasons = [one.reason for one in source.skipped if one.file == lists]
    assert reasons == [
        "1 of 6 clips have no video here (the first: 051_100/13)",
        "2 videos here are in no entry (the first: 9.mp4)",
    ]


def test_a_fraction_of_the_training_lists_can_be_held_out(tmp_path, put_clips):
    put_clips(tmp_path, *(f"{number}.mp4" for number in range(30)))
    rows = "".join(f"{number},a caption\n" for number in range(30))
    (tmp_path / "mine.csv").write_text("videoid,name\n" + rows)
    heldout = [one for one in scan(tmp_path, 0.4).clips if one.split == "heldout"]
    assert 5 < len(heldout) < 20
    assert "0.4 of the other clips" in scan(tmp_path, 0.4).split_rule


def test_videos_that_are_all_missing_are_a_mistake(tmp_path):
    (tmp_path / "results_2M_train.csv").write_text(TRAIN)
    with pytest.raises(UserError, match=r"None of the 5 clips .* looked for 001_050/11 first"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,u,d\n", "line 2 has no name"),
        ("1,u,d,p,a fox, in snow\n", "line 2 has more fields than the heading"),
        ("", "names no clip"),
    ],
)
def test_broken_lists_are_named_by_line(tmp_path, put_clips, rows, message):
    put_clips(tmp_path, "1.mp4")
    (tmp_path / "train.csv").write_text(HEAD + rows)
    with pytest.raises(UserError, match=message):
        scan(tmp_path)


def test_a_folder_without_a_list_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("id,caption\n")
    message = "no CSV file with the columns videoid and name at its top; it holds list.csv."
    with pytest.raises(UserError, match=re.escape(message)):
        open_source(tmp_path, kind="webvid")


def test_listed_names_outside_the_folder_are_not_found(tmp_path, put_clips):
    folder = tmp_path / "inside"
    put_clips(tmp_path, "inside/1.mp4", "outside.mp4")
    (folder / "a.csv").write_text("videoid,page_dir,name\n1,,x\noutside,..,y\n/etc/passwd,,z\n")
    source = scan(folder)
    assert [one.id for one in source.clips] == ["1"]
    assert "2 of 3 clips have no video here (the first: ../outside)" in source.skipped[0].reason

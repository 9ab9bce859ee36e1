import pytest

from magicvideo.data.sources.registry import open_source
from magicvideo.data.sources.ucf101 import scan
from magicvideo.errors import UserError

TRAIN = """ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r
HandstandPushups/v_HandStandPushups_g09_c02.avi 37\r
YoYo/v_YoYo_g25_c05.avi 101\r
"""
TEST = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n\r\n"
CLASSES = "1 ApplyEyeMakeup\r\n37 HandstandPushups\r\n101 YoYo\r\n"


@pytest.fixture
def ucf101(tmp_path, put_clips):
    folder = tmp_path / "ucf101"
    put_clips(folder, "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi")
    put_clips(folder, "UCF-101/HandstandPushups/v_HandStandPushups_g09_c02.avi")
    put_clips(folder, "v_ApplyEyeMakeup_g01_c01.mp4")  # converted, and without its folder
    write_lists(folder / "ucfTrainTestlist")
    return folder


def write_lists(folder, number="01", train=TRAIN, test=TEST, classes=CLASSES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"trainlist{number}.txt").write_bytes(train.encode())
    (folder / f"testlist{number}.txt").write_bytes(test.encode())
    (folder / "classInd.txt").write_bytes(classes.encode())


def test_classes_are_prompts_and_the_splits_are_the_official_ones(ucf101, prepared_clips):
    source = open_source(ucf101)
    assert source.name == "ucf101"
    clips, skipped = prepared_clips(source)
    assert {name: (clip.split, clip.text) for name, clip in clips.items()} == {
        "v_ApplyEyeMakeup_g08_c01": ("train", "apply eye makeup"),
        "v_HandStandPushups_g09_c02": ("train", "handstand pushups"),
        "v_ApplyEyeMakeup_g01_c01": ("heldout", "apply eye makeup"),
    }
    assert skipped == {
        "trainlist01.txt, testlist01.txt": (
            "1 of 4 clips have no video here (the first: YoYo/v_YoYo_g25_c05.avi)"
        )
    }
    with pytest.raises(UserError, match="which ucf101 has"):
        open_source(ucf101, 0.2)


def test_another_official_split_is_accepted(tmp_path, put_clips):
    put_clips(tmp_path, "v_YoYo_g25_c05.avi")
    write_lists(tmp_path, "03")
    source = open_source(tmp_path)
    assert source.split_rule == "UCF-101's own: trainlist03.txt trains, testlist03.txt does not."
    assert [one.text for one in source.clips] == ["yo yo"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": "ApplyEyeMakeup\n"}, r"classInd\.txt, line 1 is not a number and a class"),
        ({"train": TRAIN + "v_YoYo_g01_c01.avi 101\n"}, "line 4: v_YoYo_g01_c01.avi lies in no"),
        ({"train": "YoYo/v_YoYo_g25_c05.avi 100\n"}, "100 is not the number of YoYo, 101 in"),
        ({"test": "Other/v_Other_g25_c05.avi\n"}, r"testlist01\.txt, line 1: Other/"),
        ({"train": "", "test": ""}, "names no clip"),
        ({"train": TRAIN[:46], "test": ""}, "looked for ApplyEyeMakeup/v_Apply"),
    ],
)
def test_broken_lists_are_named_by_line(tmp_path, put_clips, changed, message):
    put_clips(tmp_path, "YoYo/v_YoYo_g25_c05.avi")
    write_lists(tmp_path, **changed)
    with pytest.raises(UserError, match=message):
        scan(tmp_path)


def test_lists_that_are_not_text_are_refused(tmp_path):
    write_lists(tmp_path)
    (tmp_path / "testlist01.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"testlist01\.txt is not UTF-8"):
        scan(tmp_path)


def test_a_folder_without_lists_is_refused(tmp_path):
    write_lists(tmp_path)
    (tmp_path / "classInd.txt").unlink()
    with pytest.raises(UserError, match=r"no classInd\.txt next to .*holds testlist01\.txt, train"):
        open_source(tmp_path, kind="ucf101")

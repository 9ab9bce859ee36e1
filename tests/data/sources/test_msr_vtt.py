import json

import pytest

from magicvideo.data.sources.msr_vtt import scan
from magicvideo.data.sources.registry import open_source
from magicvideo.errors import UserError


def video(number, split):
    times = {"start time": 137.72, "end time": 149.44}
    return {"video_id": f"video{number}", "split": split, "category": 9, **times}


def sentence(number, caption):
    return {"sen_id": 100 + number, "video_id": f"video{number}", "caption": caption}


TRAIN = {
    "info": {"year": "2016"},
    "videos": [video(0, "train"), video(1, "validate"), video(2, "train"), video(3, "train")],
    "sentences": [
        sentence(1, "a man cooks"),
        sentence(0, "a car  drives"),
        sentence(0, "a red car"),
        sentence(0, "a red car"),
        sentence(0, " "),
        sentence(3, "never fetched"),
    ],
}
TEST = {"videos": [video(7, "test"), video(0, "train")], "sentences": [sentence(7, "a dog")]}


@pytest.fixture
def msr_vtt(tmp_path, put_clips):
    folder = tmp_path / "msr-vtt"
    put_clips(folder, "TrainValVideo/video0.mp4", "TrainValVideo/video1.mp4")
    put_clips(folder, "TrainValVideo/video2.mp4", "TestVideo/video7.mp4")
    (folder / "train_val_videodatainfo.json").write_text(json.dumps(TRAIN))
    (folder / "test_videodatainfo.json").write_text(json.dumps(TEST))
    (folder / "category.txt").write_text("music\t0\n")
    return folder


def test_all_captions_are_kept_and_the_splits_are_the_official_ones(msr_vtt, prepared_clips):
    source = open_source(msr_vtt)
    assert source.name == "msr-vtt"
    assert {one.span for one in source.clips} == {None}
    clips, skipped = prepared_clips(source)
    assert {name: (clip.split, clip.text, clip.alt_captions) for name, clip in clips.items()} == {
        "video0": ("train", "a car drives", ("a red car", "a red car")),
        "video1": ("validation", "a man cooks", ()),
        "video7": ("heldout", "a dog", ()),
    }
    assert skipped == {
        "TrainValVideo/video2.mp4": "no caption (train_val_videodatainfo.json, videos[2])",
        "test_videodatainfo.json, train_val_videodatainfo.json": (
            "1 of 5 clips have no video here (the first: video3)"
        ),
    }


def test_a_list_in_the_folder_annotation_is_accepted(tmp_path, put_clips):
    put_clips(tmp_path, "videos/all/video7.mp4")
    (tmp_path / "annotation").mkdir()
    (tmp_path / "annotation/MSR_VTT.json").write_text(json.dumps(TEST))
    assert [one.id for one in open_source(tmp_path).clips] == ["video7"]


def test_there_is_no_other_split(msr_vtt):
    with pytest.raises(UserError, match="a split of their own, which msr-vtt has"):
        open_source(msr_vtt, 0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"videos": [],\n "sentences": [}', "line 2 is not JSON"),
        ({**TEST, "videos": [{"video_id": "video7"}]}, r"videos\.0\.split is wrong"),
        ({**TEST, "sentences": {}}, "sentences is wrong"),
        ({**TEST, "videos": [video(7, "all")]}, r"videos\[0\]: split 'all' is none of"),
        ({**TEST, "videos": []}, "names no clip"),
        ({**TEST, "videos": [video(8, "test")]}, "looked for video8 first"),
    ],
)
def test_broken_lists_are_named_by_place(tmp_path, put_clips, content, message):
    put_clips(tmp_path, "video7.mp4")
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "test_videodatainfo.json").write_text(text)
    with pytest.raises(UserError, match=message):
        scan(tmp_path)


def test_a_folder_without_a_list_is_refused(tmp_path):
    (tmp_path / "list.json").write_text('["videos", "sentences"]')
    with pytest.raises(UserError, match=r"no JSON file with videos and sentences.*list\.json"):
        open_source(tmp_path, kind="msr-vtt")

import json
import re

import numpy as np
import pytest

from magicvideo.data.doctor import check_source
from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources.clip_list import parse_time, scan
from magicvideo.data.sources.registry import open_source
from magicvideo.errors import UserError

FPS, FRAMES = 10, 60


@pytest.fixture(scope="module")
def film(tmp_path_factory, write_video):
    """Six seconds; frame k has the brightness 4 k, and from 3.5 seconds on 255 less that."""
    level = 4 * np.arange(FRAMES)
    level[35:] = 255 - level[35:]
    frames = np.broadcast_to(level[:, None, None, None], (FRAMES, 16, 24, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_video(path, np.ascontiguousarray(frames), FPS).read_bytes()


@pytest.fixture
def films(tmp_path, film):
    folder = tmp_path / "films"
    (folder / "part1").mkdir(parents=True)
    (folder / "part1/QMi8.mp4").write_bytes(film)
    (folder / "other.mp4").write_bytes(film)
    return folder


def write(folder, *entries, name="clips.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, entries)))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3, 3.0),
        ("17.5", 17.5),
        ("01:02.25", 62.25),
        ("00:04:52.140", 292.14),
        ("10:00:00", 36000.0),
        ("-1", -1.0),
        ("00:60:00", None),
        ("1:2:3:4", None),
        ("nan", None),
        ("", None),
        (True, None),
        (None, None),
        ([1], None),
    ],
)
def test_times_are_seconds_or_clock_times(value, seconds):
    assert parse_time(value) == (None if seconds is None else pytest.approx(seconds))


def test_one_video_gives_several_clips(films, prepared_clips, tmp_path):
    write(
        films,
        {
            "video_id": "QMi8",
            "url": "https://example.org/QMi8",
            "clip": [
                {"clip_id": "QMi8.1.mp4", "span": ["00:00:00.500", "00:00:01.200"]},
                {"clip_id": "QMi8.2.mp4", "span": ["00:00:02.000", "00:00:02.300"]},
            ],
        },
        {"video_id": "other", "start": 5, "end": 6.0, "caption": "one  end", "split": "test"},
        {"video_id": "other.mp4", "start": 0, "end": 0.4, "text": ["a start", "black"]},
        {"video_id": "gone", "start": 0, "end": 0.4},
    )
    source = open_source(films)
    assert source.name == "clip-list"
    clips, skipped = prepared_clips(source)
    assert {name: (clip.frames, clip.fps, clip.split) for name, clip in clips.items()} == {
        "QMi8.1": (7, FPS, "train"),
        "QMi8.2": (3, FPS, "train"),
        "other_5.000_6.000": (10, FPS, "heldout"),
        "other.mp4_0.000_0.400": (4, FPS, "train"),
    }
    assert {name: (clip.text, clip.alt_captions) for name, clip in clips.items()} == {
        "QMi8.1": (None, ()),
        "QMi8.2": (None, ()),
        "other_5.000_6.000": ("one end", ()),
        "other.mp4_0.000_0.400": ("a start", ("black",)),
    }
    assert skipped == {"clips.jsonl": "1 of 5 clips have no video here (the first: gone)"}
    for name, first in {"QMi8.1": 5, "QMi8.2": 20, "other.mp4_0.000_0.400": 0}.items():
        pixels = np.load(tmp_path / "out" / clips[name].file).astype(int)
        expected = 4 * np.arange(first, first + len(pixels))
        assert np.abs(pixels.mean(axis=(1, 2, 3)) - expected).max() < 3


def test_time_ranges_that_cannot_be_cut_are_skipped(films, prepared_clips):
    write(
        films,
        {"video_id": "QMi8", "start": 1, "end": 2},
        {"video_id": "QMi8", "start": 2, "end": 2},
        {"video_id": "QMi8", "start": -1, "end": 2},
        {"video_id": "QMi8", "start": 1, "end": 2},
        {"video_id": "QMi8", "start": 5, "end": 6.5},
        {"video_id": "QMi8", "start": 9, "end": 12},
        {"video_id": "other", "start": 3, "end": 3.05},
    )
    source = scan(films)
    clips, skipped = prepared_clips(source)
    assert list(clips) == ["QMi8_1.000_2.000"]
    film = "part1/QMi8.mp4 from {} seconds"
    assert skipped == {
        film.format("2 to 2"): "its start is not before its end (clips.jsonl, line 2)",
        film.format("-1 to 2"): "its start is not before its end (clips.jsonl, line 3)",
        film.format("1 to 2"): "listed again in clips.jsonl, line 4, ignored",
        film.format("5 to 6.5"): "ends at 6.5 seconds, and the video at 6.00",
        film.format("9 to 12"): "ends at 12 seconds, and the video at 6.00",
        "other.mp4 from 3 to 3.05 seconds": "a still picture",
    }
    assert {one.file: one.detail for one in check_source(source) if not one.split} == skipped


def test_a_clip_with_another_time_range_is_decoded_again(films, tmp_path):
    def run(end):
        entry = {"video_id": "QMi8", "clip_id": "a", "start": 1, "end": end}
        write(films, entry, {"video_id": "QMi8", "clip_id": "b", "start": 2, "end": 3})
        report = prepare(scan(films), tmp_path / "out", FrameSettings.square(8))
        return report.num_kept, [clip.frames for clip in report.clips]

    assert run(1.5) == (0, [5, 10])
    assert run(1.5) == (2, [5, 10])
    assert run(1.8) == (1, [8, 10])


def test_the_longest_scene_of_a_time_range_is_taken(films, prepared_clips, tmp_path):
    write(films, {"video_id": "QMi8", "start": 3, "end": "5"})
    plain = prepare(open_source(films), tmp_path / "plain", FrameSettings.square(8))
    clips, _ = prepared_clips(open_source(films, longest_scene=True))
    assert [clip.frames for clip in plain.clips] == [20]
    (clip,) = clips.values()
    assert clip.frames == 15  # the film is cut at 3.5 seconds
    again = prepare(open_source(films), tmp_path / "out", FrameSettings.square(8))
    assert [clip.frames for clip in again.clips] == [20]


def test_all_clips_of_a_video_are_in_the_same_split(tmp_path, film):
    for number in range(20):
        (tmp_path / f"film{number}.mp4").write_bytes(film)
    spans = [{"span": [start, start + 1]} for start in range(3)]
    write(tmp_path, *({"video_id": f"film{number}", "clip": spans} for number in range(20)))
    source = scan(tmp_path, 0.4)
    sides = {}
    for one in source.clips:
        sides.setdefault(one.path, set()).add(one.split)
    assert all(len(side) == 1 for side in sides.values())
    assert len({split for (split,) in sides.values()}) == 2
    assert "0.4 of the other videos" in source.split_rule


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"start": 1, "end": 2}, "line 2 has no video_id (it has start, end)"),
        ({"video_id": "QMi8", "start": 1}, "[1, None] is not a start and an end in seconds"),
        ({"video_id": "QMi8", "span": ["a", "b"]}, "line 2: ['a', 'b'] is not a start"),
        ({"video_id": "QMi8", "span": "1-2"}, "line 2: '1-2' is not a start"),
        ({"video_id": "QMi8", "clip": {"span": [1, 2]}}, "`clip` is not a list of objects"),
        ({"video_id": "QMi8", "start": 1, "end": 2, "split": "all"}, "split 'all' is none of"),
        ({"video_id": "QMi8", "start": 1, "end": 2, "caption": 3}, "neither a text nor a list"),
    ],
)
def test_broken_entries_are_named_by_line(films, entry, message):
    write(films, {"video_id": "QMi8", "start": 1, "end": 2}, entry)
    with pytest.raises(UserError, match=re.escape(message)):
        scan(films)


def test_a_json_list_is_accepted_and_other_files_are_not(films):
    (films / "metadata.jsonl").write_text('{"file_name": "other.mp4", "text": "x"}')
    assert open_source(films).name == "folder"
    (films / "clips.json").write_text('[{"video_id": "other", "start": 1, "end": 2}]')
    source = open_source(films)
    assert (source.name, [one.span for one in source.clips]) == ("clip-list", [(1.0, 2.0)])


def test_a_missing_list_and_a_missing_video_are_refused(tmp_path, films):
    with pytest.raises(UserError, match=r"no \.jsonl or \.json list.*it holds other\.mp4, part1"):
        open_source(films, kind="clip-list")
    write(tmp_path, {"video_id": "gone", "start": 1, "end": 2})
    (films / "other.mp4").unlink()
    (films / "part1/QMi8.mp4").unlink()
    with pytest.raises(UserError, match="looked for gone first"):
        scan(tmp_path)

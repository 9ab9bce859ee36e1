import json

import pytest

from magicvideo.data.manifest import (
    Attributes,
    ClipRecord,
    DatasetInfo,
    read_info,
    read_manifest,
    write_info,
    write_manifest,
)
from magicvideo.errors import UserError


def make_clip(number):
    return ClipRecord(
        id=f"clip{number}",
        file=f"clips/clip{number}.npy",
        frames=number + 2,
        fps=23.8,
        channels=3 + number % 2,
        split="heldout" if number % 3 else "train",
        loops=bool(number % 2),
        sha256=f"{number:064d}",
        text=f"наголовок {number}" if number % 2 else None,
        alt_captions=("a", "b") if number == 3 else (),
        attributes=None if number % 2 else Attributes(name="a: b", base="a", keywords=("x", "y")),
    )


def test_a_manifest_is_read_sorted(tmp_path):
    clips = [make_clip(number) for number in range(5)]
    write_manifest(tmp_path, clips[::-1])
    assert read_manifest(tmp_path) == clips


@pytest.mark.parametrize("damage", ["{", '{"id": "x"}', "[]", "\xff"])
def test_a_damaged_line_is_a_clear_mistake(tmp_path, damage):
    write_manifest(tmp_path, [make_clip(1)])
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes() + damage.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest\.jsonl is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "place", ["../secret.npy", "/etc/passwd", "clips/../x.npy", "clips/a/b.npy"]
)
def test_a_manifest_names_no_file_outside_its_folder(tmp_path, place):
    write_manifest(tmp_path, [make_clip(1)])
    path = tmp_path / "manifest.jsonl"
    path.write_text(path.read_text().replace("clips/clip1.npy", place))
    with pytest.raises(UserError, match=r"manifest\.jsonl is damaged"):
        read_manifest(tmp_path)


def test_an_unfinished_folder_has_no_manifest(tmp_path):
    with pytest.raises(UserError, match="magicvideo data prepare"):
        read_manifest(tmp_path)


def test_info_is_read_and_other_formats_are_refused(tmp_path):
    info = DatasetInfo(source="s", origin="o", height=16, width=16, licence="l", split_rule="r")
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(UserError, match="another format than 2"):
        read_info(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_info(tmp_path)


def test_folders_of_the_first_format_are_read(tmp_path):
    """They had square frames, and the frame step was named `every`."""
    first = {"format": 1, "source": "s", "origin": "o", "size": 16, "every": 3}
    content = json.dumps({**first, "licence": "l", "split_rule": "r"})
    (tmp_path / "dataset.json").write_text(content)
    info = read_info(tmp_path)
    assert (info.format, info.height, info.width, info.size, info.frame_step) == (2, 16, 16, 16, 3)


def test_the_side_is_defined_only_for_square_frames():
    info = DatasetInfo(source="s", origin="o", height=16, width=24, licence="l", split_rule="r")
    with pytest.raises(UserError, match="square frames, and those of the data are 24x16"):
        info.size  # noqa: B018

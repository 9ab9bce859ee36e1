from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicvideo.errors import UserError
from magicvideo.media.outputs import (
    FORMATS,
    check_output,
    ensure_encodable_size,
    format_of,
    output_paths,
    sibling_path,
    slugify,
)


@given(st.text())
def test_no_prompt_gives_a_path_outside_the_folder(prompt):
    path = Path("folder") / f"{slugify(prompt)}.mp4"
    assert path.parent == Path("folder")
    assert path.name.isascii()
    assert 0 < len(path.stem) <= 60


def test_slugs_are_readable():
    assert slugify("  A wóman, SURFING!  ") == "a-woman-surfing"
    assert slugify("../../etc/passwd") == "etc-passwd"
    assert slugify("猫") == "video"


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ("a/in.mp4", "a/in-upscaled.mp4"),
        ("in.MOV", "in-upscaled.mp4"),
        ("my.clip.webm", "my.clip-upscaled.webm"),
        ("in.GIF", "in-upscaled.gif"),
        ("in.png", "in-upscaled.mp4"),
        ("in", "in-upscaled.mp4"),
    ],
)
def test_outputs_derived_from_a_video_are_written_beside_it(video, expected):
    assert sibling_path(Path(video), "upscaled") == Path(expected)


@pytest.mark.parametrize(
    ("name", "sides", "expected"),
    [
        ("in.mp4", (48, 64), "in.mp4"),
        ("in.mp4", (47, 64), "in.webp"),
        ("in.webm", (48, 33), "in.webp"),
        ("in.gif", (47, 33), "in.gif"),
    ],
)
def test_a_default_name_has_a_format_that_stores_odd_sides(name, sides, expected):
    assert ensure_encodable_size(Path(name), *sides) == Path(expected)


@pytest.mark.parametrize(
    ("output", "names", "format", "expected"),
    [
        (None, ["a cat"], None, ["a-cat-5.mp4"]),
        (None, ["a cat"], "png", ["a-cat-5"]),
        (None, ["a cat", "a cat"], "gif", ["a-cat-5.gif", "a-cat-6.gif"]),
        ("x.webm", ["a cat"], None, ["x.webm"]),
        ("new", ["a cat", "a dog"], None, ["new/1-a-cat.mp4", "new/2-a-dog.mp4"]),
        ("new", ["a cat"], "png", ["new"]),
        ("new", ["a cat", "a dog"], "png", ["new/1-a-cat", "new/2-a-dog"]),
        ("new/{seed}-{slug}.webp", ["a cat"], None, ["new/5-a-cat.webp"]),
        ("{index}.gif", list("abcdefghij"), None, [f"{i:02}.gif" for i in range(1, 11)]),
    ],
)
def test_names_of_outputs(output, names, format, expected):
    paths = output_paths(
        Path(output) if output else None, names, list(range(5, 5 + len(names))), format
    )
    assert [path.as_posix() for path in paths] == expected


def test_an_existing_folder_gets_files_with_default_names(tmp_path):
    assert output_paths(tmp_path, ["a cat"], [5], None) == [tmp_path / "a-cat-5.mp4"]


@pytest.mark.parametrize(
    ("output", "names", "format", "sentence"),
    [
        ("x.mp4", ["a", "b"], None, "Several videos would be x.mp4; put {index}"),
        ("{name}.mp4", ["a"], None, r"holds {name}; it can hold {index}, {slug}, {seed}"),
        ("x", ["a"], None, "x has no suffix; end it in .mp4"),
        ("x.avi", ["a"], None, r"x.avi ends in .avi, which is not a supported format"),
        ("x.png", ["a"], None, "x.png can hold one frame only"),
        ("x.gif", ["a"], "mp4", "x.gif does not end in .mp4"),
        ("x.gif", ["a"], "png", "PNG frames go into a folder"),
        ("x.gif", ["a"], "avi", "Unknown format 'avi'; choose one of mp4, webm, webp, gif"),
    ],
)
def test_impossible_outputs_are_refused(output, names, format, sentence):
    with pytest.raises(UserError, match=sentence):
        output_paths(Path(output), names, list(range(len(names))), format)


def test_every_format_is_recognised_by_its_suffix():
    for name in FORMATS:
        path = Path("Frames") if name == "png" else Path(f"x.{name.upper()}")
        assert format_of(path) == name


@pytest.mark.parametrize("letter", ["a", "ä", "狐"])
@pytest.mark.parametrize("room", [0, 1])
def test_a_name_whose_files_beside_it_do_not_fit_is_refused_at_once(tmp_path, letter, room):
    suffix = ".latents"
    stem = letter * ((255 - len(".mp4") - len(suffix)) // len(letter.encode()))
    stem += "x" * (255 - len(stem.encode()) - len(".mp4") - len(suffix) + 1 - room)
    path = tmp_path / f"{stem}.mp4"
    if room:
        check_output(path, overwrite=True, longest_suffix=suffix)
        (tmp_path / f"{path.name}{suffix}").touch()
        return
    with pytest.raises(UserError, match=r"File name too long, 256 bytes .* choose a shorter name"):
        check_output(path, overwrite=True, longest_suffix=suffix)
    assert list(tmp_path.iterdir()) == []


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert output_paths(Path("~/x.mp4"), ["fox"], [1], None) == [tmp_path / "x.mp4"]
    with pytest.raises(UserError, match="give the full path of the home folder"):
        check_output(Path("~nobody-is-called-so/x.mp4"), overwrite=False)


def test_literal_braces_are_doubled():
    paths = output_paths(Path("x{{1}}-{seed}.mp4"), ["fox"], [7], None)
    assert paths == [Path("x{1}-7.mp4")]
    with pytest.raises(UserError, match=r"\{\{ or \}\} for a brace"):
        output_paths(Path("x{1}.mp4"), ["fox"], [7], None)


def test_a_link_to_nothing_is_in_the_way_before_any_work(tmp_path):
    (tmp_path / "x.mp4").symlink_to("nowhere.mp4")
    with pytest.raises(UserError, match="exists; choose another name, or add --overwrite"):
        check_output(tmp_path / "x.mp4", overwrite=False)
    check_output(tmp_path / "x.mp4", overwrite=True)

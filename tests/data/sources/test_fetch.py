"""A small program replaces the npm client; everything else is real."""

import hashlib
import io
import os
import sys
import tarfile

import pytest

from magicvideo.data.sources.fetch import SHA512, fetch
from magicvideo.data.sources.fluent_emoji import EmojiRecord, emoji_records
from magicvideo.errors import UserError

NPM = f"""#!{sys.executable}
import os, pathlib, shutil, sys
command, spec, option, folder = sys.argv[1:]
assert (command, option) == ("pack", "--pack-destination")
shelf = pathlib.Path(os.environ["SHELF"])
with (shelf / "calls").open("a") as log:
    log.write(spec + "\\n")
name = spec[1:].replace("/", "-").replace("@", "-") + ".tgz"
if not (shelf / name).exists():
    sys.exit("npm error code E404\\nnpm error 404 Not Found")
shutil.copy(shelf / name, folder)
"""


def make_clip(code, package, content):
    return EmojiRecord(
        code=code,
        name=code,
        base=code,
        group="g",
        subgroup="s",
        keywords=(),
        skin_tone=None,
        gender=None,
        activity=code,
        frames=2,
        package=package,
        sha256=hashlib.sha256(content).hexdigest(),
    )


CONTENTS = {"1a": b"first", "1b": b"second", "2a": b"third", "stranger": b"not listed"}
LISTED = [make_clip(code, int(code[0]), CONTENTS[code]) for code in ("1a", "1b", "2a")]


def write_tarball(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha512(path.read_bytes()).hexdigest()


def members_of(package):
    codes = [code for code in CONTENTS if code.startswith(package)]
    return {f"package/assets/{code}.webp": CONTENTS[code] for code in codes}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The packages of the stand-in for npm."""
    folder = tmp_path / "shelf"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/npm").write_text(NPM)
    (folder / "bin/npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SHELF", str(folder))
    return folder


@pytest.fixture
def sums(shelf):
    strange = {
        "package/assets/stranger.webp": CONTENTS["stranger"],
        "package/../../escaped.webp": b"x",
        "/tmp/escaped.webp": b"x",
    }
    return {
        1: write_tarball(shelf / tarball(1), {**members_of("1"), **strange}),
        2: write_tarball(shelf / tarball(2), members_of("2")),
    }


def tarball(package):
    return f"lobehub-fluent-emoji-anim-{package}-1.0.0.tgz"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


WHOLE = {"clips/1a.webp", "clips/1b.webp", "clips/2a.webp", "fluent-emoji.txt"}


def test_only_listed_clips_are_extracted(tmp_path, shelf, sums):
    folder = tmp_path / "a/emoji"
    steps = []
    fresh = fetch(folder, LISTED, sums, lambda package, clips: steps.append((package, clips)))
    assert fresh == 3
    assert steps == [(1, 2), (2, 1)]
    assert files(folder) == WHOLE
    for clip in LISTED:
        assert (folder / f"clips/{clip.code}.webp").read_bytes() == CONTENTS[clip.code]
    assert "Copyright (c) Microsoft Corporation" in (folder / "fluent-emoji.txt").read_text()
    assert (shelf / "calls").read_text().splitlines() == [
        "@lobehub/fluent-emoji-anim-1@1.0.0",
        "@lobehub/fluent-emoji-anim-2@1.0.0",
    ]
    assert not list(tmp_path.rglob("escaped.webp"))


def test_only_what_is_missing_or_damaged_is_fetched_again(tmp_path, shelf, sums):
    folder = tmp_path / "emoji"
    fetch(folder, LISTED, sums)
    (shelf / "calls").unlink()
    assert fetch(folder, LISTED, sums) == 0
    assert not (shelf / "calls").exists()
    (folder / "clips/2a.webp").write_bytes(b"thirD")
    assert fetch(folder, LISTED, sums) == 1
    assert (shelf / "calls").read_text().splitlines() == ["@lobehub/fluent-emoji-anim-2@1.0.0"]
    assert (folder / "clips/2a.webp").read_bytes() == b"third"


def test_a_failure_keeps_what_was_fetched(tmp_path, shelf, sums):
    folder = tmp_path / "emoji"
    hidden = (shelf / tarball(2)).rename(shelf / "hidden")
    with pytest.raises(UserError, match=r"npm pack .*anim-2@1\.0\.0` failed \(npm error code E404"):
        fetch(folder, LISTED, sums)
    assert {"clips/1a.webp", "clips/1b.webp"} < files(folder)
    hidden.rename(shelf / tarball(2))
    assert fetch(folder, LISTED, sums) == 1
    assert files(folder) == WHOLE


def test_a_tarball_with_another_checksum_is_not_opened(tmp_path, shelf, sums):
    write_tarball(shelf / tarball(1), {**members_of("1"), "package/more": b"x"})
    with pytest.raises(UserError, match="SHA-512 that is not the expected one"):
        fetch(tmp_path / "emoji", LISTED, sums)
    assert files(tmp_path / "emoji") == {"fluent-emoji.txt"}


def test_an_existing_tarball_is_used_if_it_is_complete(tmp_path, shelf, sums):
    packages = tmp_path / "emoji/packages"
    packages.mkdir(parents=True)
    (tmp_path / "emoji/fluent-emoji.txt").touch()
    (shelf / tarball(1)).rename(packages / tarball(1))
    (packages / tarball(2)).write_bytes((shelf / tarball(2)).read_bytes()[:-9])
    assert fetch(tmp_path / "emoji", LISTED, sums) == 3
    assert (shelf / "calls").read_text().splitlines() == ["@lobehub/fluent-emoji-anim-2@1.0.0"]


def test_a_listed_clip_that_is_absent_or_different_is_named(tmp_path, shelf, sums):
    members = members_of("2") | {"package/assets/2a.webp": b"other"}
    other = {**sums, 2: write_tarball(shelf / tarball(2), members)}
    with pytest.raises(UserError, match=r"2a\.webp in .*anim-2.* is not the listed file"):
        fetch(tmp_path / "emoji", LISTED, other)
    other = {**sums, 2: write_tarball(shelf / tarball(2), {"package/assets/2b.webp": b""})}
    with pytest.raises(UserError, match=r"lacks 1 listed clips, such as package/assets/2a\.webp"):
        fetch(tmp_path / "emoji", LISTED, other)
    assert "clips/2a.webp" not in files(tmp_path / "emoji")


def test_a_link_instead_of_a_clip_is_not_followed(tmp_path, shelf, sums):
    path = shelf / tarball(2)
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("package/assets/2a.webp")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    other = {**sums, 2: hashlib.sha512(path.read_bytes()).hexdigest()}
    with pytest.raises(UserError, match="lacks 1 listed clips"):
        fetch(tmp_path / "emoji", LISTED, other)


def test_without_npm_one_sentence_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm is not installed; install Node\.js"):
        fetch(tmp_path / "emoji", LISTED)


def test_other_folders_are_not_changed(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no fetched emoji"):
        fetch(tmp_path, LISTED, {})
    with pytest.raises(UserError, match="is a file"):
        fetch(tmp_path / "letter.txt", LISTED, {})
    assert files(tmp_path) == {"letter.txt"}


def test_there_is_a_checksum_for_every_package():
    assert {clip.package for clip in emoji_records()} == set(SHA512)
    assert {len(digest) for digest in SHA512.values()} == {128}

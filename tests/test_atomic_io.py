import errno
import hashlib
import os
import stat

import pytest

from magicvideo.atomic_io import (
    CHECKSUMS_FILE,
    PARTIAL,
    atomic_file,
    atomic_folder,
    hash_files,
    hash_folder,
    remove_partial,
    sha256,
    verify_checksums,
    write_checksums,
)
from magicvideo.errors import UserError

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class BrokenError(Exception):
    """An error that interrupts a writer."""


def write_and_break(writing, name=None):
    with writing as partial:
        (partial / name if name else partial).write_bytes(b"new")
        raise BrokenError


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def summed(tmp_path):
    """A folder of three files, one of them in a subfolder, with checksums."""
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights.bin").write_bytes(b"abc")
    (folder / "empty").touch()
    (folder / "two words.txt").write_text("x")
    write_checksums(folder)
    return folder


def test_a_file_appears_complete(tmp_path):
    target = tmp_path / "clip.tar.gz"
    with atomic_file(target) as partial:
        assert partial.parent == tmp_path
        assert partial.suffix == ".gz"
        assert partial.name.startswith(PARTIAL)
        partial.write_bytes(b"half")
        assert not target.exists()
        partial.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    assert names(tmp_path) == ["clip.tar.gz"]


def test_a_failure_keeps_the_old_file(tmp_path):
    target = tmp_path / "video.mp4"
    target.write_bytes(b"old")
    with pytest.raises(BrokenError):
        write_and_break(atomic_file(target))
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["video.mp4"]


def test_a_long_name_fits(tmp_path):
    target = tmp_path / ("n" * 240 + ".png")
    with atomic_file(target) as partial:
        partial.touch()
    assert target.exists()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_the_users_own(tmp_path, mask):
    """Temporary files are private; the final file must not be."""
    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "file") as partial:
            partial.touch()
        with atomic_folder(tmp_path / "folder"):
            pass
        assert os.umask(mask) == mask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_a_folder_appears_complete_and_with_checksums(tmp_path):
    target = tmp_path / "new" / "model"
    with atomic_folder(target) as partial:
        (partial / "unet").mkdir()
        (partial / "unet" / "weights.bin").write_bytes(b"abc")
        assert not target.exists()
    assert names(tmp_path / "new") == [
        "model",
        f"model/{CHECKSUMS_FILE}",
        "model/unet",
        "model/unet/weights.bin",
    ]
    verify_checksums(target)


def test_a_folder_takes_the_place_of_another(tmp_path, summed):
    with atomic_folder(summed) as partial:
        (partial / "other").touch()
    assert names(tmp_path) == ["model", f"model/{CHECKSUMS_FILE}", "model/other"]


def test_a_failure_keeps_the_old_folder(tmp_path, summed):
    before = names(tmp_path)
    with pytest.raises(BrokenError):
        write_and_break(atomic_folder(summed), "other")
    assert names(tmp_path) == before
    verify_checksums(summed)


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    (tmp_path / f"{PARTIAL}video-1234.mp4").touch()
    (tmp_path / f"{PARTIAL}model-5678" / "unet").mkdir(parents=True)
    (tmp_path / f"{PARTIAL}model-5678" / "unet" / "weights.bin").touch()
    (tmp_path / "partial-video.mp4").touch()
    remove_partial(tmp_path)
    assert names(tmp_path) == ["partial-video.mp4"]


def test_checksums_equal_those_of_sha256sum(summed):
    assert (summed / CHECKSUMS_FILE).read_text().splitlines() == [
        f"{EMPTY}  empty",
        f"{sha256(summed / 'two words.txt')}  two words.txt",
        f"{ABC}  unet/weights.bin",
    ]


def test_large_files_are_read_in_pieces(tmp_path):
    path = tmp_path / "large"
    content = bytes(range(251)) * 10_007
    path.write_bytes(content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_an_intact_folder_is_accepted_and_has_a_hash(summed):
    verify_checksums(summed)
    identity = hash_folder(summed)
    write_checksums(summed)
    assert hash_folder(summed) == identity
    (summed / "empty").write_text("no more")
    write_checksums(summed)
    assert hash_folder(summed) != identity


def test_a_selection_of_files_has_the_hash_of_its_checksums(summed):
    text = f"{EMPTY}  empty\n{ABC}  unet/weights.bin\n"
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert hash_files(summed, ["unet/*.bin", "emp*", "*ty", "absent"]) == expected


def flip(path):
    damaged = bytearray(path.read_bytes())
    damaged[1] ^= 0x10
    path.write_bytes(damaged)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / CHECKSUMS_FILE).unlink(), f"has no {CHECKSUMS_FILE}"),
        (lambda folder: (folder / "unet/weights.bin").unlink(), "lacks unet/weights.bin"),
        (lambda folder: (folder / "unet/x.bin").touch(), "x.bin does not belong to the folder"),
        (lambda folder: flip(folder / "unet/weights.bin"), "weights.bin is damaged"),
        (lambda folder: (folder / "unet/weights.bin").write_bytes(b"ab"), "weights.bin is damaged"),
        (lambda folder: flip(folder / CHECKSUMS_FILE), "empty is damaged"),
    ],
    ids=["no sums", "missing", "foreign", "flipped bit", "truncated", "damaged sums"],
)
def test_a_damaged_folder_is_refused_and_names_the_file(summed, spoil, message):
    spoil(summed)
    with pytest.raises(UserError, match=message):
        verify_checksums(summed)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_mode_changes_keeps_its_default_mode(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, "refused")

    monkeypatch.setattr("pathlib.Path.chmod", refuse)
    with atomic_file(tmp_path / "file") as partial:
        partial.write_text("whole")
    with atomic_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("whole")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "whole"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_of_another_program_is_not_replaced_by_default(tmp_path, monkeypatch, has_links):
    if not has_links:

        def refuse(*_):
            raise OSError(errno.EPERM, "refused")

        monkeypatch.setattr("os.link", refuse)
    target = tmp_path / "file"
    with atomic_file(target, overwrite=False) as partial:
        partial.write_text("first")
    assert target.read_text() == "first"
    with pytest.raises(FileExistsError), atomic_file(target, overwrite=False) as partial:
        partial.write_text("second")
    assert target.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_bytecode_compiled_by_pip_is_not_unexpected(summed):
    (summed / "unet" / "__pycache__").mkdir()
    (summed / "unet" / "__pycache__" / "pipeline.cpython-311.pyc").write_bytes(b"compiled")
    verify_checksums(summed)
    (summed / "unet" / "pipeline.pyc").write_bytes(b"compiled")
    with pytest.raises(UserError, match=r"pipeline\.pyc does not belong to the folder"):
        verify_checksums(summed)


def test_bytecode_of_python_is_neither_listed_nor_unexpected(tmp_path):
    (tmp_path / "weights.txt").write_text("1")
    compiled = tmp_path / "__pycache__" / "pipeline.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"1")
    write_checksums(tmp_path)
    assert "pycache" not in (tmp_path / CHECKSUMS_FILE).read_text()
    verify_checksums(tmp_path)
    compiled.unlink()
    verify_checksums(tmp_path)

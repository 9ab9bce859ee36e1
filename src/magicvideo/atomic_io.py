"""Atomic writing of files and folders, SHA-256 checksums, and locks on outputs."""

import hashlib
import os
import re
import shutil
import socket
import tempfile
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from magicvideo.errors import UserError

CHECKSUMS_FILE = "SHA256SUMS"
PARTIAL = ".partial-"
LOCK = ".magicvideo-lock"
"""Name of the lock inside a folder, and the beginning of the name of one next to a file."""

_STEM = 50  # characters of a file's name in the name of its partial file


@contextmanager
def atomic_file(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to `target`; on success it replaces the target.

    The bytes are flushed to the disk before the rename, so a kill or a full disk leaves either the
    old file or the new one. The temporary path keeps the target's suffix, since encoders choose a
    format by it. Whatever goes wrong, no partial file stays behind. Where a place refuses to change
    modes (network shares, sticks), the file keeps the mode that the place gives.

    Args:
        target: The file.
        overwrite: Whether it may exist at the end.

    Raises:
        FileExistsError: If it does, and may not.
        OSError: If the disk refuses to write, also where safetensors says so. It names `target`.
    """
    handle, name = tempfile.mkstemp(
        prefix=f"{PARTIAL}{target.stem[:_STEM]}-", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    partial = Path(name)
    try:
        with _naming(target):
            yield partial
            _flush(partial)
            _change_mode(partial, 0o666)
            if overwrite:
                partial.replace(target)
            else:
                _publish_new(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, *, checksums: bool = True) -> Iterator[Path]:
    """Yield a temporary folder next to `target`; on success it replaces the target.

    An existing target is replaced: for the moment between two renames neither is there.

    Args:
        target: The folder.
        checksums: Whether `SHA256SUMS` is written into it.

    Raises:
        OSError: If the disk refuses to write, also where safetensors says so. It names `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{target.name[:_STEM]}-", dir=target.parent))
    old = partial.with_name(f"{partial.name}-old")
    try:
        with _naming(target):
            yield partial
            if checksums:
                write_checksums(partial)
            for path in partial.rglob("*"):
                if path.is_file():
                    _flush(path)
                    _change_mode(path, 0o666)  # safetensors' files are their owner's alone
            _change_mode(partial, 0o777)
            if target.exists():
                target.rename(old)
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def lock_output(target: Path, *, inside: bool = False) -> Iterator[None]:
    """Hold the lock of an output, so that no other process writes it at the same time.

    The lock is a file that names its holder. A killed process holds none, since the operating
    system releases the lock; the file that it leaves is taken over by the next.

    Args:
        target: A file or folder that is going to be written. Its folder must exist.
        inside: Whether the lock lies inside `target`, a folder that stays in its place.

    Raises:
        UserError: If another process holds the lock; it is named.
    """
    path = target / LOCK if inside else target.parent / f"{LOCK}-{_name_key(target.name)}"
    lock = FileLock(path)
    try:
        with warnings.catch_warnings():
            # a place without locks, where a plain file has to do
            warnings.simplefilter("ignore")
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{target} is being written by {_holder(path)}; wait until it ends, or choose another "
            "output."
        ) from None
    except (OSError, NotImplementedError):
        yield  # a place where nothing can be locked; writing says what is wrong, if anything is
        return
    try:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        if not inside:
            _remove_stale(target)
        yield
    finally:
        # while it is held: whoever opened the file before sees that it has no name any more
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def lock_outputs(targets: Sequence[Path]) -> Iterator[None]:
    """Hold the locks of several outputs, as `lock_output` does; a missing folder is made.

    A folder that was made here is removed again if nothing was put into it.

    Raises:
        UserError: If another process holds one of them.
    """
    with ExitStack() as stack:
        for folder in {target.parent for target in targets}:
            if not folder.exists():
                folder.mkdir(parents=True)
                stack.callback(_remove_if_empty, folder)
        for target in targets:
            stack.enter_context(lock_output(target))
        yield


def _remove_stale(target: Path) -> None:
    """Delete what killed writers of a file or folder left next to it; its lock is held.

    A folder that was moved aside, and not replaced before the kill, gets its name back.
    """
    if len(target.name) > _STEM:
        return  # names of partial files are cut, and other outputs may begin alike
    draw = r"[a-z0-9_]{8}"
    file = re.escape(f"{PARTIAL}{target.stem}-") + draw + re.escape(target.suffix)
    folder = re.escape(f"{PARTIAL}{target.name}-") + draw
    with suppress(OSError):
        for path in list(target.parent.iterdir()):
            if re.fullmatch(file, path.name) and path.is_file():
                path.unlink(missing_ok=True)
            elif re.fullmatch(f"{folder}-old", path.name) and not target.exists():
                path.rename(target)
            elif re.fullmatch(f"{folder}(-old)?", path.name) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _name_key(name: str) -> str:
    """Return the same for two names that some file systems take for one."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return hashlib.sha256(folded.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _holder(path: Path) -> str:
    try:
        said = path.read_text(encoding="utf-8", errors="replace")[:200].strip()
    except OSError:
        said = ""
    return said if said.startswith("process ") and said.isprintable() else "another process"


def remove_partial(folder: Path, stem: str = "") -> None:
    """Delete partial files that killed writers left in a folder, of all files or of one stem."""
    for path in folder.glob(f"{PARTIAL}{stem and stem + '-'}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` over all files below a folder, in the format of `sha256sum`.

    A `README.md` at the top is left out: it describes the folder, and editing it changes nothing.
    """
    files = [path for path in _files_below(folder) if path != folder / "README.md"]
    (folder / CHECKSUMS_FILE).write_text(_sums(folder, files), encoding="utf-8")


def verify_checksums(folder: Path) -> None:
    """Check a folder against its `SHA256SUMS`.

    Raises:
        UserError: If the sums are absent, or a file is missing, foreign or changed. It names the
            first such file.
    """
    sums = folder / CHECKSUMS_FILE
    if not sums.is_file():
        raise UserError(f"{folder} has no {CHECKSUMS_FILE}; take a complete copy of the folder.")
    expected: dict[str, str] = {}
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        expected[name] = digest
    present = {path.relative_to(folder).as_posix() for path in _files_below(folder)}
    if missing := sorted(set(expected) - present):
        raise UserError(f"{folder} lacks {missing[0]}; take a complete copy of the folder.")
    # a repository on the Hub has files of its own next to those of the folder
    foreign = sorted(
        name for name in present - set(expected) if name != "README.md" and name[0] != "."
    )
    if foreign:
        raise UserError(f"{folder / foreign[0]} does not belong to the folder; remove it.")
    for name, digest in expected.items():
        if sha256(folder / name) != digest:
            raise UserError(
                f"{folder / name} is damaged (its SHA-256 differs from {CHECKSUMS_FILE}); "
                "copy it again."
            )


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder less its sums, and less what pip compiles as it installs them."""
    for path in folder.rglob("*"):
        is_compiled = path.parent.name == "__pycache__"
        if path.is_file() and path != folder / CHECKSUMS_FILE and not is_compiled:
            yield path


def hash_folder(folder: Path) -> str:
    """Return the identity of a summed folder: the SHA-256 of its `SHA256SUMS`."""
    return sha256(folder / CHECKSUMS_FILE)


def hash_files(folder: Path, patterns: Iterable[str]) -> str:
    """Return the identity of some files of a folder without sums: the SHA-256 of their sums.

    Args:
        folder: Where they are.
        patterns: Of their names; a file that two of them match counts once.
    """
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return hashlib.sha256(_sums(folder, files).encode()).hexdigest()


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Say of what a disk refuses which file it was for, and make safetensors say it like others."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(target)
        raise
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(target)) from error


def hash_component(folder: Path) -> str:
    """Return the identity of a part of a summed folder: the SHA-256 of its lines of the sums.

    Args:
        folder: The part, a folder inside the one that carries `SHA256SUMS`.

    Raises:
        UserError: If the sums are absent or do not have the part.
    """
    sums = folder.parent / CHECKSUMS_FILE
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    own = [line for line in lines if line.partition("  ")[2].startswith(f"{folder.name}/")]
    if not own:
        raise UserError(f"{sums} does not list {folder.name}; take a complete copy of the folder.")
    return hashlib.sha256("\n".join(own).encode()).hexdigest()


def _sums(folder: Path, files: Iterable[Path]) -> str:
    return "".join(
        f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in sorted(files)
    )


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _change_mode(path: Path, mode: int) -> None:
    """Give a path the usual mode; that it cannot be had costs no file."""
    with suppress(OSError, NotImplementedError):
        path.chmod(mode & ~_umask())


def _publish_new(partial: Path, target: Path) -> None:
    """Give a file its name, unless another has it by now."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # the place has no hard links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        partial.replace(target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

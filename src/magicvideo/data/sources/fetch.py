"""Download of the Fluent animated emoji through the npm client."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from magicvideo.atomic_io import atomic_file, lock_output, remove_partial, sha256
from magicvideo.data.sources.fluent_emoji import CLIPS, MARKER, NOTICE, EmojiRecord
from magicvideo.errors import UserError

PACKAGES = "packages"
"""Folder of tarballs until their clips are extracted; a complete one is not downloaded again."""

VERSION = "1.0.0"
SHA512: dict[int, str] = {
    1: "ff89b7d6f02e644438694279a7170e5393d592e2726b9e464715192fbfb380b9"
    "71657a73cc4f233eaa43ca1648084de7e3b9d2fd8f4ce7fbcb762ce2f36d3540",
    2: "4bacb37f44595eb41b5ddc425ae1c0f410282dd0519367e55fe9dee133c6107f"
    "ea029c22b0200a1e80001a3292953637395799f5beedfcd11b9a98dac2741824",
    3: "53345250332375f76df6f111e5b8631e43ea81cdc41207c6b58b3a9ddbe2cce4"
    "ef40ec58439ee8c36453916483671c16df45f8118062d9e5934bb0970c3a05b2",
    4: "208925e73b527751ebcef203b7fb86b05a02d563835d1758ab9b913ab9e4caa8"
    "bd0db4e811c2759e563ce8f9e85177854bd9c10a71df898937a2e48419384598",
}
"""SHA-512 of the tarballs of `@lobehub/fluent-emoji-anim-1` to `-4`."""

_ASSETS = "package/assets"


def fetch(
    folder: Path,
    listed: Sequence[EmojiRecord],
    sha512: Mapping[int, str] = SHA512,
    on_package: Callable[[int, int], None] | None = None,
) -> int:
    """Download every listed clip into `folder/clips`; complete ones are kept.

    Tarballs are removed once their clips are extracted. The licence notice is written next to them.

    Args:
        folder: A new folder, or one that an earlier call began.
        listed: The clips, and the packages that have them.
        sha512: Of each package's tarball.
        on_package: Called with a package's number and its missing clips before it is downloaded.

    Returns:
        The number of new clips.

    Raises:
        UserError: If the folder holds something else, npm is absent or fails, or a tarball is not
            the one expected.
    """
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with lock_output(folder.absolute()):
        _open_folder(folder)
        return _fetch_missing(folder, listed, sha512, on_package)


def _fetch_missing(
    folder: Path,
    listed: Sequence[EmojiRecord],
    sha512: Mapping[int, str],
    on_package: Callable[[int, int], None] | None,
) -> int:
    missing: dict[int, list[EmojiRecord]] = defaultdict(list)
    for clip in listed:
        if not _is_whole(clip_path(folder, clip), clip.sha256):
            missing[clip.package].append(clip)
    for package, clips in sorted(missing.items()):
        if on_package:
            on_package(package, len(clips))
        tarball = _get_tarball(folder / PACKAGES, package, sha512[package])
        _extract(tarball, folder, clips)
        tarball.unlink()
    shutil.rmtree(folder / PACKAGES)
    return sum(map(len, missing.values()))


def clip_path(folder: Path, clip: EmojiRecord) -> Path:
    """Return the path of a downloaded clip."""
    return folder / CLIPS / f"{clip.code}.webp"


def _open_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to fetch into.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise UserError(f"{folder} is not empty and holds no fetched emoji; name a new folder.")
    for inside in (CLIPS, PACKAGES):
        (folder / inside).mkdir(parents=True, exist_ok=True)
        remove_partial(folder / inside)
    (folder / MARKER).write_text(NOTICE, encoding="utf-8")


def _is_whole(path: Path, expected: str) -> bool:
    return path.is_file() and sha256(path) == expected


def _get_tarball(folder: Path, package: int, expected: str) -> Path:
    tarball = folder / f"lobehub-fluent-emoji-anim-{package}-{VERSION}.tgz"
    if tarball.is_file() and _sha512(tarball) == expected:
        return tarball
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        fetched = _npm_pack(f"@lobehub/fluent-emoji-anim-{package}@{VERSION}", Path(partial))
        if _sha512(fetched) != expected:
            raise UserError(
                f"npm gave a {fetched.name} with a SHA-512 that is not the expected one; nothing "
                "of it was used, try again or check the registry that npm is set to."
            )
        fetched.replace(tarball)
    return tarball


def _npm_pack(spec: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed; install Node.js (https://nodejs.org), which has it.")
    command = [npm, "pack", spec, "--pack-destination", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    tarballs = list(folder.glob("*.tgz"))
    if result.returncode or len(tarballs) != 1:
        said = [line for line in result.stderr.splitlines() if line.startswith("npm error")]
        raise UserError(
            f"`npm pack {spec}` failed ({said[0] if said else f'exit code {result.returncode}'}); "
            "run the same command again, what was fetched is kept."
        )
    return tarballs[0]


def _sha512(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha512()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _extract(tarball: Path, folder: Path, clips: list[EmojiRecord]) -> None:
    """Extract listed names alone, to paths that come from the list and never from the archive."""
    wanted = {f"{_ASSETS}/{clip.code}.webp": clip for clip in clips}
    with tarfile.open(tarball) as archive:
        for member in archive:
            clip = wanted.get(member.name)
            content = archive.extractfile(member) if clip and member.isfile() else None
            if clip is None or content is None:
                continue
            with atomic_file(clip_path(folder, clip)) as partial:
                with partial.open("wb") as file:
                    shutil.copyfileobj(content, file)
                if sha256(partial) != clip.sha256:
                    raise UserError(f"{clip.code}.webp in {tarball.name} is not the listed file.")
            del wanted[member.name]
    if wanted:
        raise UserError(f"{tarball.name} lacks {len(wanted)} listed clips, such as {min(wanted)}.")

"""Where a feature network lies: a path of the user's, or a hub id that the user wrote out."""

from dataclasses import dataclass
from pathlib import Path

from magicvideo.atomic_io import hash_files, sha256
from magicvideo.errors import UserError

HUB = "hub:"
"""What a name must begin with before anything is downloaded."""
CLIP_WEIGHTS = "model.safetensors"
# the configuration and the tokenizer decide what the weights give
_CLIP_FILES = ["*.json", "*.txt", CLIP_WEIGHTS]


@dataclass(frozen=True, kw_only=True)
class ResolvedFile:
    """A network's file or folder on this machine.

    Attributes:
        path: Where it is.
        name: What it is called in results: its own name, or its hub id.
        sha256: Of the file, or of the sums of all files of a folder that its network is read from.
    """

    path: Path
    name: str
    sha256: str


def locate_file(given: str, what: str) -> ResolvedFile:
    """Return the file of a network.

    Args:
        given: A path, or `hub:OWNER/REPOSITORY/FILE`, with `@REVISION` at its end if wanted.
        what: What it should be, for people.

    Raises:
        UserError: If there is no such file, or the hub does not give it.
    """
    if given.startswith(HUB):
        path = _from_hub(given)
        return ResolvedFile(path=path, name=given, sha256=sha256(path))
    path = Path(given)
    if not path.is_file():
        raise UserError(
            f"{given} is no file; name the file of {what}, or {HUB}OWNER/REPOSITORY/FILE to "
            "download one."
        )
    return ResolvedFile(path=path, name=path.name, sha256=sha256(path))


def locate_folder(given: str, what: str) -> ResolvedFile:
    """Return the folder of a network in transformers' format, with its weights in safetensors.

    Args:
        given: A path, or `hub:OWNER/REPOSITORY`, with `@REVISION` at its end if wanted.
        what: What it should be, for people.

    Raises:
        UserError: If there is no such folder, it has no safetensors, or the hub does not give it.
    """
    path = _from_hub(given) if given.startswith(HUB) else Path(given)
    if not (path / CLIP_WEIGHTS).is_file():
        raise UserError(
            f"{given} has no {CLIP_WEIGHTS}; name a folder of {what} in transformers' format, or "
            f"{HUB}OWNER/REPOSITORY to download one."
        )
    name = given if given.startswith(HUB) else path.resolve().name
    return ResolvedFile(path=path, name=name, sha256=hash_files(path, _CLIP_FILES))


def _from_hub(given: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    place, _, revision = given.removeprefix(HUB).partition("@")
    owner, _, rest = place.partition("/")
    repository, _, file = rest.partition("/")
    if not owner or not repository:
        raise UserError(f"{given} is no hub id; write {HUB}OWNER/REPOSITORY, and /FILE for a file.")
    identity, wanted = f"{owner}/{repository}", revision or None
    try:
        if file:
            return Path(hf_hub_download(identity, file, revision=wanted))
        return Path(snapshot_download(identity, revision=wanted, allow_patterns=_CLIP_FILES))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{given} cannot be had from the hub ({reason}); give a path.") from None

"""A folder of videos that somebody made, and what each was asked for."""

import re
from dataclasses import dataclass
from pathlib import Path

from magicvideo.errors import UserError
from magicvideo.media.video_reader import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from magicvideo.pipelines.video import read_request

_SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES
_NUMBERED = re.compile(r"(.+)-(\d+)")


@dataclass(frozen=True)
class ExternalVideo:
    """A file and its prompt."""

    path: Path
    prompt: str


def find_external_videos(folder: Path) -> list[ExternalVideo]:
    """Return the videos of a folder and its subfolders, by name.

    The prompt is in `video.txt` beside `video.mp4`, or in the file as magicvideo writes it, or is
    the name, in VBench's manner: `PROMPT-0.mp4`.

    Raises:
        UserError: If there is none, or one has no prompt.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one with videos in it.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise UserError(
            f"{folder} holds no video ({', '.join(sorted(_SUFFIXES))}); name another folder."
        )
    return [ExternalVideo(path, _prompt(path)) for path in paths]


def vbench_name(prompt: str, number: int) -> str:
    """Return the name that VBench reads: `PROMPT-NUMBER`.

    Raises:
        UserError: If no file can be called so.
    """
    name = f"{prompt}-{number}"
    if re.search(r"[/\\\0\n]", name) or prompt.startswith(".") or len(name.encode()) > 240:
        raise UserError(
            f"The prompt {prompt[:40]!r} cannot be the name of a file, as VBench wants it; take "
            "prompts without slashes, of at most 230 bytes."
        )
    return name


def _prompt(path: Path) -> str:
    beside = path.with_suffix(".txt")
    if beside.is_file():
        return " ".join(beside.read_text(encoding="utf-8-sig", errors="replace").split())
    try:
        return read_request(path).prompt
    except UserError:
        pass
    if named := _NUMBERED.fullmatch(path.stem):
        return named.group(1)
    raise UserError(
        f"{path} does not tell its prompt; put it into {beside.name} beside it, or call the file "
        f"PROMPT-0{path.suffix}."
    )

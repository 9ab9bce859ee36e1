"""What is compared: a model folder, or a folder of finished videos matched to the prompts."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from magicvideo.atomic_io import CHECKSUMS_FILE, hash_folder, sha256
from magicvideo.errors import UserError
from magicvideo.media.naming import slug_of
from magicvideo.pipelines.model_folder import INDEX
from magicvideo.pipelines.video import read_request
from studies.human_study.study import StudyArm

_SUFFIXES = (".mp4", ".webm", ".webp", ".gif")


def describe_source(folder: Path, prompts: list[str]) -> StudyArm:
    """Return what a folder is and the hash of what would be shown of it.

    Raises:
        UserError: If it is neither a whole model folder nor one with a video for every prompt.
    """
    name = folder.resolve().name
    if (folder / INDEX).is_file():
        if not (folder / CHECKSUMS_FILE).is_file():
            raise UserError(
                f"{folder} has no {CHECKSUMS_FILE}; take a complete copy of the folder."
            )
        return StudyArm(name=name, kind="model", hash=hash_folder(folder))
    digest = hashlib.sha256()
    for path in match_videos(folder, prompts):
        digest.update(sha256(path).encode())
    return StudyArm(name=name, kind="videos", hash=digest.hexdigest())


def match_videos(folder: Path, prompts: list[str]) -> list[Path]:
    """Return the finished video of each prompt.

    A video belongs to the prompt that its file carries. One that carries none belongs to the
    prompt that it is named after, as `generate` names files: `a-cat`, `a-cat-7` or `3-a-cat`. A
    prompt that stands in the list several times takes its videos in the order of their names.

    Raises:
        UserError: If there is no such folder, or a prompt has too few videos or too many.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name a model folder or one of finished videos.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{folder} is no model folder and holds no video ({', '.join(_SUFFIXES)}).")
    carried = {path: _carried_prompt(path) for path in files}
    waiting: dict[str, Iterator[Path]] = {}
    for prompt, wanted in Counter(prompts).items():
        found = [path for path in files if carried[path] == prompt] or [
            path for path in files if carried[path] is None and slug_of(prompt) in _slugs(path)
        ]
        if len(found) != wanted:
            raise UserError(
                f"{folder} holds {len(found)} videos of {prompt!r} and the prompts name it "
                f"{wanted} times; a video is found by the prompt that its file carries, or by a "
                f"name like {slug_of(prompt)}.mp4."
            )
        waiting[prompt] = iter(found)
    return [next(waiting[prompt]) for prompt in prompts]


def _carried_prompt(path: Path) -> str | None:
    try:
        return read_request(path).prompt
    except UserError:
        return None


def _slugs(path: Path) -> set[str]:
    """Return what prompts a file can be named after, with or without its index and its seed."""
    unnumbered = re.sub(r"^\d+-", "", path.stem)
    stems = {
        stem for name in (path.stem, unnumbered) for stem in (name, re.sub(r"-\d+$", "", name))
    }
    return {slug_of(stem) for stem in stems}

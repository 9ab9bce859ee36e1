"""The `videofolder` layout of Hugging Face's `datasets`: a folder a split, and metadata or classes.

    train/metadata.jsonl   train/a.mp4   train/more/b.mp4      captions by file_name and text
    train/dog/a.mp4        test/cat/b.mp4                      captions from the classes' names

A `metadata.jsonl` or `metadata.csv` may lie in any folder, and counts for the videos below it; its
captions are in `text` or `caption`, `file_name` is a path from where it lies. Where there is no
metadata, the folder that a video lies in is its class. Folders called `videos` or `data` are
neither split nor class. Splits are the folders' names as `datasets` reads them: train, validation
(valid, val, dev), test (eval). https://huggingface.co/docs/datasets/video_dataset
"""

import os
from pathlib import Path

from magicvideo.data.manifest import Split
from magicvideo.data.sources.annotation_files import check_texts, read_rows
from magicvideo.data.sources.annotation_list import clean
from magicvideo.data.sources.class_labels import readable
from magicvideo.data.sources.source import Candidate, Skipped, Source, with_unique_ids
from magicvideo.data.sources.splits import SPLIT_NAMES, check_share, share_rule, split_by_hash
from magicvideo.data.sources.video_index import SUFFIXES, contents, is_utf8, show, walk
from magicvideo.errors import UserError

NAME = "videofolder"
LICENCE = "not stated; the owners of the videos decide"

_METADATA = ("metadata.jsonl", "metadata.csv")
_UNREAD = "metadata.parquet"
_CAPTIONS = ("text", "caption")
_NEITHER = {"videos", "data"}  # folders that say nothing


def is_here(folder: Path) -> bool:
    """Tell whether a folder has this layout: a folder of a split, whose videos have no .txt beside.

    Metadata at the top says that it is a plain folder, as does a caption beside a video.
    """
    if any((folder / name).is_file() for name in _METADATA):
        return False
    for place in (folder, *(folder / name for name in sorted(_NEITHER))):
        for path in place.glob("*/"):
            if path.name in SPLIT_NAMES:
                videos = (one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
                first = next(videos, None)
                if first and not first.with_suffix(".txt").is_file():
                    return True
    return False


def find_clips(folder: Path, holdout: float = 0.0) -> Source:
    """Return the clips of a folder, with captions from the metadata or from the classes.

    Args:
        folder: The data set.
        holdout: Share of the clips that are in train, or in no split, to be held out by a hash.

    Raises:
        UserError: If the metadata cannot be read, or there is no video.
    """
    check_share(holdout)
    files = walk(folder)
    metadata = [path for path in files if path.name in _METADATA]
    if unread := next((path for path in files if path.name == _UNREAD), None):
        raise UserError(f"{unread} is Parquet, which is not read; write it as metadata.jsonl.")
    if not any(path.suffix.lower() in SUFFIXES for path in files):
        raise UserError(
            f"{folder} has no video in it or in folders such as train/dog; {contents(folder)}."
        )
    captions, skipped = _read_metadata(metadata, folder)
    candidates = []
    for path in files:
        if path in metadata:
            continue
        name = show(path, folder)
        text = captions.pop(path, None) if metadata else _label(path, folder)
        if reason := _fault(path, text, has_metadata=bool(metadata)):
            skipped.append(Skipped(name, reason))
            continue
        clip_id = path.relative_to(folder).with_suffix("").as_posix()
        split = _split_of(path, folder) or "train"
        if split == "train":
            split = split_by_hash(clip_id, holdout)
        candidates.append(Candidate(clip_id, name, path, split, loops=False, text=text))
    skipped += [
        Skipped(show(path, folder), "in the metadata, but there is no file") for path in captions
    ]
    rule = f"Held out: what lies in test{share_rule(holdout, 'the clips in train')}."
    return Source(NAME, folder, LICENCE, rule, with_unique_ids(candidates), skipped)


def _read_metadata(metadata: list[Path], folder: Path) -> tuple[dict[Path, str], list[Skipped]]:
    """Return captions by file. Names that lead out of the folder are those of no file in it."""
    captions: dict[Path, str] = {}
    skipped = []
    for path in metadata:
        for where, row in read_rows(path):
            column = next((name for name in _CAPTIONS if row.get(name)), _CAPTIONS[0])
            check_texts(path, where, row, ("file_name", column))
            file = Path(os.path.normpath(path.parent / row["file_name"]))
            if not is_utf8(row["file_name"]) or not file.is_relative_to(folder):
                reason = f"no file in the folder ({show(path, folder)}, {where})"
                skipped.append(Skipped(ascii(row["file_name"]), reason))
            elif file in captions:
                reason = f"listed again in {show(path, folder)}, {where}, passed over"
                skipped.append(Skipped(show(file, folder), reason))
            else:
                captions[file] = clean(row[column])
    return captions, skipped


def _telling(path: Path, folder: Path) -> list[str]:
    """Return the folders between the source and a file that say something."""
    return [part for part in path.relative_to(folder).parts[:-1] if part not in _NEITHER]


def _split_of(path: Path, folder: Path) -> Split | None:
    parts = _telling(path, folder)
    return SPLIT_NAMES.get(parts[0]) if parts else None


def _label(path: Path, folder: Path) -> str | None:
    parts = _telling(path, folder)
    classes = parts[1:] if parts and parts[0] in SPLIT_NAMES else parts
    return readable(classes[-1]) if classes else None


def _fault(path: Path, text: str | None, *, has_metadata: bool) -> str | None:
    if path.suffix.lower() not in SUFFIXES:
        return f"no video by its suffix ({', '.join(sorted(SUFFIXES))})"
    if not is_utf8(str(path)):
        return "its name is not UTF-8; rename it"
    if text is None:
        return "no line in the metadata" if has_metadata else "no metadata, and no class folder"
    if not text or not is_utf8(text):
        return "its caption is not UTF-8 text" if text else "its caption is empty"
    return None

"""The `videofolder` layout of Hugging Face `datasets`: a folder per split, metadata or classes.

    train/metadata.jsonl   train/a.mp4   train/more/b.mp4      captions by file_name and text
    train/dog/a.mp4        test/cat/b.mp4                      captions from the names of classes

A `metadata.jsonl` or `metadata.csv` may lie in any folder, and counts for the videos below it; its
columns are those of the plain folder, and `file_name` is a path from where it lies. Where there is
no metadata, the folder that a video lies in is its class. Folders called `videos` or `data` are
neither split nor class. Splits are the folders' names as `datasets` reads them: train, validation
(valid, val, dev), test (eval). https://huggingface.co/docs/datasets/video_dataset
"""

from pathlib import Path

from magicvideo.data.manifest import Split
from magicvideo.data.sources.annotation_list import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    captions_of_row,
    check_caption,
    label_to_prompt,
    read_rows,
    text_column,
)
from magicvideo.data.sources.folder import clip_id_of, why_no_video
from magicvideo.data.sources.source import (
    SPLIT_NAMES,
    SkippedFile,
    Source,
    SourceClip,
    check_holdout,
    holdout_description,
    split_by_hash,
    with_unique_ids,
)
from magicvideo.data.sources.video_index import (
    SUFFIXES,
    VideoIndex,
    display_path,
    summarize_folder,
)
from magicvideo.errors import UserError
from magicvideo.printable import printable

NAME = "videofolder"
LICENCE = "not stated; the owners of the videos decide"

_METADATA = ("metadata.jsonl", "metadata.csv")
_UNREAD = "metadata.parquet"
_NEITHER = {"videos", "data"}  # folder names that are not labels


def matches(folder: Path) -> bool:
    """Return whether a folder has this layout: folders of splits, whose videos have no .txt beside.

    Metadata at the top marks a plain folder, as does a caption next to a video.
    """
    if any((folder / name).is_file() for name in _METADATA):
        return False
    for place in (folder, *(folder / name for name in sorted(_NEITHER))):
        for path in place.glob("*/"):
            if path.name.lower() in SPLIT_NAMES:
                videos = (one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
                first = next(videos, None)
                if first and not first.with_suffix(".txt").is_file():
                    return True
    return False


def scan(folder: Path, holdout: float = 0.0) -> Source:
    """Return the clips of a folder, with captions from the metadata or from the classes.

    Args:
        folder: The data set.
        holdout: Fraction of the clips in train, or in no split, that are held out by a hash.

    Raises:
        UserError: If the metadata cannot be read, or there is no video.
    """
    check_holdout(holdout)
    index = VideoIndex(folder)
    metadata = [path for path in index.files if path.name.lower() in _METADATA]
    if unread := next((path for path in index.files if path.name.lower() == _UNREAD), None):
        raise UserError(f"{unread} is Parquet, which is not read; write it as metadata.jsonl.")
    if not any(path.suffix.lower() in SUFFIXES for path in index.files):
        raise UserError(
            f"{folder} has no video in it or in folders such as train/dog; "
            f"{summarize_folder(folder)}."
        )
    captions, skipped = _read_metadata(metadata, index)
    clips = []
    for path in index.files:
        if path in metadata:
            continue
        name = display_path(path, folder)
        label = _label(path, folder)
        texts = captions.get(path) if metadata else [label] if label else None
        if reason := _fault(path, texts, has_metadata=bool(metadata)):
            skipped.append(SkippedFile(name, reason))
            continue
        text, *others = texts or [""]
        clip_id = clip_id_of(path, folder)
        split = _split_of(path, folder) or "train"
        if split == "train":
            split = split_by_hash(clip_id, holdout)
        clips.append(
            SourceClip(
                clip_id, name, path, split, loops=False, text=text, alt_captions=tuple(others)
            )
        )
    rule = f"Held out: what lies in test{holdout_description(holdout, 'the clips in train')}."
    return Source(NAME, folder, LICENCE, rule, with_unique_ids(clips), skipped)


def _read_metadata(
    metadata: list[Path], index: VideoIndex
) -> tuple[dict[Path, list[str]], list[SkippedFile]]:
    """Return captions by file."""
    captions: dict[Path, list[str]] = {}
    skipped = []
    for path in metadata:
        shown = display_path(path, index.folder)
        for where, row in read_rows(path):
            name = row[text_column(path, where, row, FILE_COLUMNS)]
            texts = captions_of_row(row, text_column(path, where, row, CAPTION_COLUMNS))
            file = index.find(name, path.parent)
            if file is None:
                reason = f"in {shown}, {where}, but there is no file"
                skipped.append(SkippedFile(printable(name), reason))
            elif file in captions:
                reason = f"listed again in {shown}, {where}, ignored"
                skipped.append(SkippedFile(display_path(file, index.folder), reason))
            else:
                captions[file] = texts
    return captions, skipped


def _labels(path: Path, folder: Path) -> list[str]:
    """Return the folders between the source and a file that name a split or a class."""
    return [part for part in path.relative_to(folder).parts[:-1] if part not in _NEITHER]


def _split_of(path: Path, folder: Path) -> Split | None:
    parts = _labels(path, folder)
    return SPLIT_NAMES.get(parts[0].lower()) if parts else None


def _label(path: Path, folder: Path) -> str | None:
    parts = _labels(path, folder)
    classes = parts[1:] if parts and parts[0].lower() in SPLIT_NAMES else parts
    return label_to_prompt(classes[-1]) if classes else None


def _fault(path: Path, texts: list[str] | None, *, has_metadata: bool) -> str | None:
    if reason := why_no_video(path):
        return reason
    if texts is None:
        return "no line in the metadata" if has_metadata else "no metadata, and no class folder"
    reasons = filter(None, map(check_caption, texts or [""]))
    return next(reasons, None)

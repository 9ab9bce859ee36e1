"""Any folder of video files with captions next to them, as other trainers read them, too.

A caption is the text file of the clip's name, `clip.txt`, `clip.mp4.txt` or `clip.caption`. Or one
list at the top of the folder has all captions:

    metadata.jsonl, metadata.csv    a row a clip: file_name (or video, video_path, path) and text
                                    (or caption, prompt), and, if wanted, split
    metadata.json                   a list of such rows, or {"clip.mp4": {"caption": "words"}}
    videos.txt and prompts.txt      a path a line, and its caption in the same line (or prompt.txt,
                                    captions.txt)

Where a clip has a text file and a row, the row counts.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from magicvideo.data.manifest import Split
from magicvideo.data.sources.annotation_list import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    captions_of_row,
    check_caption,
    normalize_caption,
    read_rows,
    text_column,
)
from magicvideo.data.sources.source import (
    SkippedFile,
    Source,
    SourceClip,
    check_holdout,
    holdout_description,
    parse_split,
    split_by_hash,
    with_unique_ids,
)
from magicvideo.data.sources.video_index import (
    SUFFIXES,
    VideoIndex,
    display_path,
    is_utf8,
    name_key,
)
from magicvideo.data.text_files import TextFileError, iter_lines, read_text
from magicvideo.errors import UserError
from magicvideo.printable import printable

NAME = "folder"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.json")
VIDEO_LIST = "videos.txt"
PROMPT_LISTS = ("prompts.txt", "prompt.txt", "captions.txt")

_CAPTION_SUFFIXES = (".txt", ".caption")
_LIST_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".tsv")
_ARCHIVE_SUFFIXES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".zip")
_MAX_CAPTION_FILE = 1 << 20


@dataclass(frozen=True)
class _Annotation:
    """Captions of one file by a list, the first of them canonical."""

    captions: list[str]
    split: Split | None


def scan(folder: Path, holdout: float = 0.0) -> Source:
    """Return the clips of a folder and its subfolders; hidden files are ignored.

    Args:
        folder: Where to look.
        holdout: Fraction of the clips, chosen by the hash of the id, that training does not see.
            Clips whose metadata names a split follow that.

    Raises:
        UserError: If the metadata cannot be read, or `holdout` is not a fraction.
    """
    check_holdout(holdout)
    index = VideoIndex(folder)
    lists = _find_lists(index)
    annotations, skipped = _read_lists(lists, index)
    captions = _find_captions(index)
    used = {path for paths in captions.values() for path in paths[:1]}
    clips = []
    for path in index.files:
        if path in lists or path in used:
            continue
        found = _to_clip(path, index, annotations.pop(path, None), captions.get(path), holdout)
        if isinstance(found, SkippedFile):
            skipped.append(found)
        else:
            clips.append(found)
    rule = "Held out: what the metadata names so" + holdout_description(holdout, "the other clips")
    licence = "not stated; the clips' owner decides"
    return Source(NAME, folder, licence, f"{rule}.", with_unique_ids(clips), skipped)


def _find_lists(index: VideoIndex) -> list[Path]:
    """Return the metadata file, or the two text files, at the top of a folder.

    Raises:
        UserError: If there are several, since it is ambiguous which one applies.
    """
    top = {name_key(path.name): path for path in index.files if path.parent == index.folder}
    metadata = [top[name] for name in METADATA if name in top]
    prompts = [top[name] for name in PROMPT_LISTS if name in top]
    pairs = [top[VIDEO_LIST], *prompts] if VIDEO_LIST in top and prompts else []
    if len(metadata) > 1 or len(pairs) > 2 or (metadata and pairs):
        names = " and ".join(path.name for path in (*metadata, *pairs))
        raise UserError(f"{index.folder} holds {names}; keep one list of captions.")
    return metadata or pairs


def _read_lists(
    lists: list[Path], index: VideoIndex
) -> tuple[dict[Path, _Annotation], list[SkippedFile]]:
    rows = _read_pair(*lists) if len(lists) == 2 else _read_metadata(lists)
    annotations: dict[Path, _Annotation] = {}
    skipped = []
    for where, name, annotation in rows:
        path = index.find(name) or index.find_video(name)
        if path is None:
            skipped.append(SkippedFile(printable(name), "in the metadata, but there is no file"))
        elif path in annotations:
            shown = display_path(path, index.folder)
            skipped.append(SkippedFile(shown, f"listed again in {where}, ignored"))
        else:
            annotations[path] = annotation
    return annotations, skipped


def _read_metadata(lists: list[Path]) -> Iterator[tuple[str, str, _Annotation]]:
    for path in lists:
        for where, row in read_rows(path):
            name = row[text_column(path, where, row, FILE_COLUMNS)]
            captions = captions_of_row(row, text_column(path, where, row, CAPTION_COLUMNS))
            split = parse_split(row["split"], f"{path}, {where}") if row.get("split") else None
            yield where, name, _Annotation(captions, split)


def _read_pair(videos: Path, prompts: Path) -> Iterator[tuple[str, str, _Annotation]]:
    """Yield the clips of two files that belong together line by line."""
    try:
        names, texts = ([line.strip() for line in iter_lines(path)] for path in (videos, prompts))
    except TextFileError as error:
        raise UserError(f"{videos} or {prompts.name} {error}.") from None
    for number, (name, text) in enumerate(zip_longest(names, texts, fillvalue=""), start=1):
        if bool(name) != bool(text):
            raise UserError(
                f"Line {number} of {videos} is {name!r}, and of {prompts.name} {text!r}; every "
                "line needs a video in one and its caption in the other."
            )
        if name:
            yield f"line {number}", name, _Annotation([normalize_caption(text)], None)


def _find_captions(index: VideoIndex) -> dict[Path, list[Path]]:
    """Return the text files that belong to each video by their name, the one that counts first."""
    by_key = defaultdict[tuple[Path, str], list[Path]](list)
    for path in index.files:
        if path.suffix.lower() in _CAPTION_SUFFIXES:
            by_key[path.parent, name_key(path.name)].append(path)
    found = {}
    for path in index.files:
        if path.suffix.lower() in SUFFIXES:
            stems = (path.name, path.stem)
            names = [f"{stem}{suffix}" for suffix in _CAPTION_SUFFIXES for stem in stems]
            found[path] = [
                min(texts, key=lambda text, name=name: text.name != name)  # type: ignore[misc]
                for name in names
                if (texts := by_key.get((path.parent, name_key(name))))
            ]
    return found


def _to_clip(
    path: Path,
    index: VideoIndex,
    annotation: _Annotation | None,
    caption_files: list[Path] | None,
    holdout: float,
) -> SourceClip | SkippedFile:
    name = display_path(path, index.folder)
    if reason := why_no_video(path):
        return SkippedFile(name, reason)
    captions = annotation.captions if annotation else []
    if annotation is None:
        if not caption_files:
            wanted = f"neither {printable(path.stem)}.txt nor a line in the metadata"
            return SkippedFile(name, f"no caption: {wanted}")
        try:
            captions = [_read_caption(caption_files[0], path, index.folder)]
        except TextFileError as error:
            return SkippedFile(name, f"{printable(caption_files[0].name)} {error}")
    for caption in captions or [""]:
        if reason := check_caption(caption):
            return SkippedFile(name, reason)
    clip_id = clip_id_of(path, index.folder)
    split = (annotation.split if annotation else None) or split_by_hash(clip_id, holdout)
    text, others = captions[0], tuple(captions[1:])
    return SourceClip(clip_id, name, path, split, loops=False, text=text, alt_captions=others)


def why_no_video(path: Path) -> str | None:
    """Return why a file of a source cannot become a clip by its name, or None if it can."""
    if not is_utf8(str(path)):
        return "its name is not UTF-8; rename it"
    if path.suffix.lower() in SUFFIXES:
        return None
    if path.is_dir():
        return "a folder that cannot be opened, or that contains this one"
    if path.name.lower() in (VIDEO_LIST, *PROMPT_LISTS):
        return f"a list of captions has two files, {VIDEO_LIST} and {PROMPT_LISTS[0]}"
    if path.suffix.lower() in _LIST_SUFFIXES:
        return f"no list of captions by its name; {', '.join(METADATA)} at the top are read"
    if path.suffix.lower() in _ARCHIVE_SUFFIXES:
        return "an archive; unpack it first"
    if path.suffix.lower() in _CAPTION_SUFFIXES:
        return "text, and no video of the same name next to it, or another text file counts"
    return f"no video by its suffix ({', '.join(sorted(SUFFIXES))})"


def clip_id_of(path: Path, folder: Path) -> str:
    """Return the id of a file: its path without suffix, in composed letters on every system."""
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def _read_caption(path: Path, video: Path, folder: Path) -> str:
    """Return the caption in a text file.

    Raises:
        TextFileError: If it cannot be read, or is a link that leaves the source while its video
            does not: `clip.txt` linked to a private file must not become a caption.
    """
    try:
        target = path.resolve()
        places = (folder.resolve(), video.resolve().parent)
    except (OSError, RuntimeError):  # a loop of links
        raise TextFileError("cannot be read (a loop of links)") from None
    if path.is_symlink() and not any(target.is_relative_to(place) for place in places):
        raise TextFileError("is a link to a file outside the folder; copy the file")
    return normalize_caption(read_text(path, _MAX_CAPTION_FILE))

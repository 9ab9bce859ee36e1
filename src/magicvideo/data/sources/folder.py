"""Any folder of video files with captions beside them.

Captions are `clip.txt` beside `clip.mp4`, or the columns `file_name` and `text` of a
`metadata.jsonl` or `metadata.csv` at the top of the folder, which also may carry `split` (train,
validation or test). Where a file has both, the metadata counts.
"""

from pathlib import Path

from magicvideo.data.manifest import Split
from magicvideo.data.sources.annotation_files import Row, check_texts, read_rows
from magicvideo.data.sources.annotation_list import clean
from magicvideo.data.sources.source import Candidate, Skipped, Source, with_unique_ids
from magicvideo.data.sources.splits import check_share, share_rule, split_by_hash, split_named
from magicvideo.data.sources.video_index import SUFFIXES, is_utf8, show, walk
from magicvideo.errors import UserError

NAME = "folder"
METADATA = ("metadata.jsonl", "metadata.csv")


def find_clips(folder: Path, holdout: float = 0.0) -> Source:
    """Return the clips of a folder and its subfolders; hidden files are passed over.

    Args:
        folder: Where to look.
        holdout: Share of the clips, chosen by the hash of the id, that training does not see.
            Clips whose metadata names a split follow that.

    Raises:
        UserError: If the metadata cannot be read, or `holdout` is not a share.
    """
    check_share(holdout)
    rows, skipped = _read_metadata(folder)
    candidates = []
    for path in _offered(folder):
        found = _look_at(path, folder, rows.pop(path, None), holdout)
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            candidates.append(found)
    skipped += [
        Skipped(show(path, folder), "in the metadata, but there is no file") for path in rows
    ]
    rule = "Held out: what the metadata names so" + share_rule(holdout, "the other clips")
    licence = "not stated; the clips' owner decides"
    return Source(NAME, folder, licence, f"{rule}.", with_unique_ids(candidates), skipped)


def _offered(folder: Path) -> list[Path]:
    """Return all files but hidden ones, metadata and the captions of clips, in order."""
    paths = [path for path in walk(folder) if path not in {folder / name for name in METADATA}]
    captions = {path.with_suffix(".txt") for path in paths if path.suffix.lower() in SUFFIXES}
    return [path for path in paths if path not in captions]


def _look_at(path: Path, folder: Path, row: Row | None, holdout: float) -> Candidate | Skipped:
    name = show(path, folder)
    if not is_utf8(str(path)):
        return Skipped(name, "its name is not UTF-8; rename it")
    if path.suffix == ".txt":
        return Skipped(name, "text, and no video of the same name beside it")
    if path.suffix.lower() not in SUFFIXES:
        return Skipped(name, f"no video by its suffix ({', '.join(sorted(SUFFIXES))})")
    text = row["text"] if row else _read_caption(path.with_suffix(".txt"))
    if isinstance(text, Skipped):
        return Skipped(name, text.reason)
    text = clean(text)
    if not text or not is_utf8(text):
        return Skipped(name, "its caption is not UTF-8 text" if text else "its caption is empty")
    clip_id = path.relative_to(folder).with_suffix("").as_posix()
    split: Split = (row or {}).get("split") or split_by_hash(clip_id, holdout)
    return Candidate(clip_id, name, path, split, loops=False, text=text)


def _read_caption(path: Path) -> str | Skipped:
    if not path.is_file():
        return Skipped(path.name, f"no caption: neither {path.name} nor a line in the metadata")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return Skipped(path.name, f"{path.name} is not UTF-8 text")
    except OSError as error:
        return Skipped(path.name, f"{path.name} cannot be read ({error.strerror})")


def _read_metadata(folder: Path) -> tuple[dict[Path, Row], list[Skipped]]:
    present = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(present) > 1:
        raise UserError(f"{folder} holds {' and '.join(METADATA)}; keep one of them.")
    rows: dict[Path, Row] = {}
    skipped = []
    for where, row in read_rows(present[0]) if present else ():
        _check_row(present[0], where, row)
        path = folder / row["file_name"]
        if reason := _refuse_path(path, folder):
            skipped.append(Skipped(ascii(row["file_name"]), reason))
        elif path in rows:
            skipped.append(Skipped(row["file_name"], f"listed again in {where}, passed over"))
        else:
            rows[path] = row
    return rows, skipped


def _refuse_path(path: Path, folder: Path) -> str | None:
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except ValueError:
        return "no valid file name"
    return None if inside else "outside the folder"


def _check_row(path: Path, where: str, row: Row) -> None:
    check_texts(path, where, row, ("file_name", "text"))
    if row.get("split"):
        row["split"] = split_named(row["split"], f"{path}, {where}")

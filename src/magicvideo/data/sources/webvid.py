"""WebVid's layout: CSV lists of captioned videos, each at `page_dir/videoid.mp4`.

Lists are the CSV files at the top of the folder that have the columns `videoid` and `name`, the
caption; `page_dir` may be missing, and every other column is ignored. Videos lie anywhere
below. A list with "val" or "test" in its name is held out, the others train: WebVid's own are
`results_2M_train.csv` and `results_2M_val.csv`. Bain et al., Frozen in Time,
https://arxiv.org/abs/2104.00650
"""

from pathlib import Path

from magicvideo.data.sources.annotation_list import (
    AnnotatedClips,
    csv_columns,
    read_rows,
    text_column,
)
from magicvideo.data.sources.source import (
    Source,
    check_holdout,
    holdout_description,
    split_by_hash,
)

NAME = "webvid"
LICENCE = "not stated in the lists; the owners of the videos decide"

_COLUMNS = ("videoid", "name")
_HELD_OUT = ("val", "test")


def matches(folder: Path) -> bool:
    """Return whether a folder has this layout."""
    return bool(_lists(folder))


def scan(folder: Path, holdout: float = 0.0) -> Source:
    """Return the clips that the lists name.

    Args:
        folder: Where the lists are.
        holdout: Fraction of the clips in training lists, by the hash of the id, to be held out too.

    Raises:
        UserError: If a list is missing or damaged, or none of its videos exists.
    """
    check_holdout(holdout)
    lists = _lists(folder)
    wanted = f"CSV file with the columns {' and '.join(_COLUMNS)} at its top"
    clips = AnnotatedClips.from_lists(folder, lists, wanted)
    for path in lists:
        is_heldout = any(word in path.stem.lower() for word in _HELD_OUT)
        for where, row in read_rows(path):
            for column in _COLUMNS:
                text_column(path, where, row, (column,))
            video = row["videoid"]
            clips.add(
                video,
                [f"{row['page_dir']}/{video}", video] if row.get("page_dir") else [video],
                "heldout" if is_heldout else split_by_hash(video, holdout),
                [row["name"]],
                where=f"{path.name}, {where}",
            )
    rule = "Held out: the lists with val or test in their names"
    return clips.source(NAME, LICENCE, f"{rule}{holdout_description(holdout, 'the other clips')}.")


def _lists(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.csv") if {*_COLUMNS} <= {*csv_columns(path)})

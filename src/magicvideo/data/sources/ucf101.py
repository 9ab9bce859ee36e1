"""UCF-101's layout: `trainlist01.txt`, `testlist01.txt`, `classInd.txt`, one folder per class.

The lists lie at the top of the folder or in `ucfTrainTestlist`. Their lines are paths such as
`ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi`, in training lists followed by the number that
`classInd.txt` gives the class. The folder in a path names the class, which becomes the caption.
Of the three official splits the first that is there counts. Soomro et al., UCF101: A Dataset of 101
Human Actions Classes From Videos in The Wild, https://arxiv.org/abs/1212.0402
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from magicvideo.data.sources.annotation_list import AnnotatedClips, label_to_prompt
from magicvideo.data.sources.source import Source
from magicvideo.data.sources.video_index import summarize_folder
from magicvideo.errors import UserError

NAME = "ucf101"
LICENCE = "not stated in the lists; the videos are their uploaders'"

_PLACES = ("", "ucfTrainTestlist")
_CLASSES = "classInd.txt"
_NUMBERS = ("01", "02", "03")


def matches(folder: Path) -> bool:
    """Return whether a folder has this layout."""
    return _lists(folder) is not None


def scan(folder: Path) -> Source:
    """Return the clips of an official split.

    Raises:
        UserError: If a list is not there, one is broken, or not one of the videos is there.
    """
    lists = _lists(folder)
    if not lists:
        raise UserError(
            f"{folder} has no {_CLASSES} next to trainlist01.txt and testlist01.txt, at its top or "
            f"in {_PLACES[1]}; {summarize_folder(folder)}."
        )
    classes, train, test = lists
    numbers = dict(_read_classes(classes))
    clips = AnnotatedClips(folder, f"{train.name}, {test.name}")
    for path in (train, test):
        for number, words in _lines(path):
            where = f"{path.name}, line {number}"
            name = PurePosixPath(words[0])
            _check_class(path, number, words, numbers)
            clips.add(
                name.stem,
                [str(name), name.name],
                "train" if path is train else "heldout",
                [label_to_prompt(name.parent.name)],
                where=where,
            )
    return clips.source(NAME, LICENCE, f"UCF-101's own: {train.name} trains, {test.name} does not.")


def _lists(folder: Path) -> tuple[Path, Path, Path] | None:
    """Return the files with the classes, the training clips and the test clips."""
    for place in _PLACES:
        for number in _NUMBERS:
            names = (_CLASSES, f"trainlist{number}.txt", f"testlist{number}.txt")
            classes, train, test = (folder / place / name for name in names)
            if classes.is_file() and train.is_file() and test.is_file():
                return classes, train, test
    return None


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.split():
            yield number, words


def _read_classes(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of every class and its number."""
    for number, words in _lines(path):
        if len(words) != 2 or not words[0].isdigit():
            raise UserError(
                f"{path}, line {number} is not a number and a class, such as "
                "`1 ApplyEyeMakeup`; correct that line."
            )
        yield words[1], words[0]


def _check_class(path: Path, number: int, words: list[str], numbers: dict[str, str]) -> None:
    label = PurePosixPath(words[0]).parent.name
    if label not in numbers:
        raise UserError(
            f"{path}, line {number}: {words[0]} lies in no class of {_CLASSES}; a line is a path "
            "such as `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi`."
        )
    if words[1:] and words[1:] != [numbers[label]]:
        raise UserError(
            f"{path}, line {number}: {' '.join(words[1:])} is not the number of {label}, "
            f"{numbers[label]} in {_CLASSES}."
        )

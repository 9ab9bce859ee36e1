"""MSR-VTT's layout: JSON files with `videos` and `sentences`, about 20 captions per clip.

The files lie at the top of the folder or in `annotation`, such as `train_val_videodatainfo.json`
and `test_videodatainfo.json`. Videos lie anywhere below as `video0.mp4`, already cut: `start time`
and `end time` refer to the original film and are ignored. All captions are kept, as
often as they were given. Xu et al., MSR-VTT: A Large Video Description Dataset for Bridging Video
and Language, CVPR 2016
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from magicvideo.data.sources.annotation_list import AnnotatedClips, read_json
from magicvideo.data.sources.source import Source, parse_split
from magicvideo.errors import UserError

NAME = "msr-vtt"
LICENCE = "not stated in the lists; Microsoft offers MSR-VTT for research"
SPLIT_RULE = "MSR-VTT's own: train trains, validate is validation, test is held out."

_KEYS = ("videos", "sentences")


class _Video(BaseModel):
    video_id: str
    split: str


class _Sentence(BaseModel):
    video_id: str
    caption: str


class _Lists(BaseModel):
    videos: list[_Video]
    sentences: list[_Sentence]


def matches(folder: Path) -> bool:
    """Return whether a folder has this layout."""
    return any(_lists(folder))


def scan(folder: Path) -> Source:
    """Return the clips of all lists in the folder; a clip in several counts once.

    Raises:
        UserError: If a list is missing or damaged, or none of its videos exists.
    """
    lists = list(_lists(folder))
    wanted = (
        f"JSON file with {' and '.join(_KEYS)}, such as train_val_videodatainfo.json, at its top "
        "or in annotation"
    )
    clips = AnnotatedClips.from_lists(folder, lists, wanted)
    read = {path.name: _read(path) for path in lists}
    captions = _captions(read.values())
    seen = set[str]()
    for name, content in read.items():
        for number, video in enumerate(content.videos):
            if video.video_id in seen:
                continue
            seen.add(video.video_id)
            where = f"{name}, videos[{number}]"
            clips.add(
                video.video_id,
                [video.video_id],
                parse_split(video.split, where),
                captions.get(video.video_id, []),
                where=where,
            )
    return clips.source(NAME, LICENCE, SPLIT_RULE)


def _captions(read: Iterable[_Lists]) -> dict[str, list[str]]:
    """Return the captions of every video, from the first list that has any."""
    captions: dict[str, list[str]] = {}
    for content in read:
        own = defaultdict[str, list[str]](list)
        for sentence in content.sentences:
            own[sentence.video_id].append(sentence.caption)
        captions = {**own, **captions}
    return captions


def _lists(folder: Path) -> Iterator[Path]:
    for path in sorted([*folder.glob("*.json"), *folder.glob("annotation/*.json")]):
        if path.is_file() and _has_keys(path):
            yield path


def _has_keys(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n")
        content = head + file.read() if head.startswith(b"{") else b""
    return all(f'"{key}"'.encode() in content for key in _KEYS)


def _read(path: Path) -> _Lists:
    try:
        return _Lists.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place} is wrong ({first['msg']}); correct it.") from None

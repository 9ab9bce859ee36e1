"""A study: two sets of videos of the same prompts, shown in pairs to people."""

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, ValidationError

from magicvideo.atomic_io import CHECKSUMS_FILE, atomic_file, hash_folder, sha256
from magicvideo.errors import UserError
from magicvideo.media.outputs import slugify
from magicvideo.media.video_io import VideoStream, open_video_stream, to_uint8, write_pixels
from magicvideo.models.components import INDEX_FILE
from magicvideo.pipelines.request import GenerationSettings, resolve_seeds
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.video import read_request

Side: TypeAlias = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")
_FILE = "study.json"
_VIDEOS = "videos"


class StudyArm(BaseModel):
    """Where the videos of one side come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The folder's name, for the report alone."""
    kind: Literal["model", "videos"]
    hash: str
    """Of the model folder, or over the finished videos."""


class Study(BaseModel):
    """The settings and videos of a study; votes are stored beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: StudyArm
    b: StudyArm
    prompts: tuple[str, ...]
    seed: int
    """Of the first video of both models; the others count on."""
    settings: GenerationSettings
    salt: str
    """Decides names of files, orders and sides, and is never served."""

    def arm(self, side: Side) -> StudyArm:
        """Return where the videos of a side come from."""
        return self.a if side == "a" else self.b

    def order(self, rater: str) -> list[int]:
        """Return the pairs in the order in which a rater sees them."""
        return sorted(
            range(len(self.prompts)), key=lambda pair: self._digest("order", rater, str(pair))
        )

    def left(self, rater: str, pair: int) -> Side:
        """Return the side of the study whose video a rater sees on the left."""
        return SIDES[int(self._digest("left", rater, str(pair)), 16) % 2]

    def video_name(self, side: Side, pair: int) -> str:
        """Return the file name of a video; without the salt it reveals nothing."""
        return f"{self._digest('video', side, str(pair))[:32]}.mp4"

    def videos(self, folder: Path) -> dict[str, Path]:
        """Return where each video of the study is, by its name."""
        names = [self.video_name(s, pair) for s in SIDES for pair in range(len(self.prompts))]
        return {name: folder / _VIDEOS / name for name in names}

    def _digest(self, *parts: str) -> str:
        return hashlib.sha256("\0".join((self.salt, *parts)).encode()).hexdigest()


def other_side(side: Side) -> Side:
    """Return the other side."""
    return "b" if side == "a" else "a"


def open_study(
    folder: Path,
    a: StudyArm,
    b: StudyArm,
    prompts: list[str],
    seed: int,
    settings: GenerationSettings,
) -> Study:
    """Return the study in a folder; create it if there is none.

    Raises:
        UserError: If the folder holds a study of something else.
    """
    wanted = Study(
        a=a,
        b=b,
        prompts=tuple(prompts),
        seed=seed,
        settings=settings,
        salt=secrets.token_hex(16),
    )
    if (folder / _FILE).exists():
        found = read_study(folder)
        for field in ("a", "b", "prompts", "seed", "settings"):
            if getattr(found, field) != getattr(wanted, field):
                raise UserError(
                    f"{folder} holds a study that differs in {field}; its votes would not fit, so "
                    "choose another folder with --study."
                )
        return found
    (folder / _VIDEOS).mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / _FILE) as partial:
        partial.write_text(wanted.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return wanted


def read_study(folder: Path) -> Study:
    """Return the study that a folder holds.

    Raises:
        UserError: If it holds none, or its file is damaged.
    """
    path = folder / _FILE
    try:
        return Study.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no study; begin one with `python -m studies compare A B --prompts "
            f"FILE --study {folder}`."
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}.") from None


_SUFFIXES = (".mp4", ".webm", ".webp", ".gif")


def describe_source(folder: Path, prompts: list[str]) -> StudyArm:
    """Return what a folder is and the hash of what would be shown of it.

    Raises:
        UserError: If it is neither a whole model folder nor one with a video for every prompt.
    """
    name = folder.resolve().name
    if (folder / INDEX_FILE).is_file():
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
        raise UserError(f"{folder} is not a folder; name a model folder or one of finished videos.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(
            f"{folder} is not a model folder and contains no video ({', '.join(_SUFFIXES)})."
        )
    carried = {path: _carried_prompt(path) for path in files}
    waiting: dict[str, Iterator[Path]] = {}
    for prompt, wanted in Counter(prompts).items():
        found = [path for path in files if carried[path] == prompt] or [
            path for path in files if carried[path] is None and slugify(prompt) in _slugs(path)
        ]
        if len(found) != wanted:
            raise UserError(
                f"{folder} holds {len(found)} videos of {prompt!r} and the prompts name it "
                f"{wanted} times; a video is found by the prompt that its file carries, or by a "
                f"name like {slugify(prompt)}.mp4."
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
    return {slugify(stem) for stem in stems}


Clip: TypeAlias = tuple[Iterable[UInt8[np.ndarray, "h w 3"]], float]
"""The frames of a video, and its frames a second."""

_PLEASANT_SIDE = 256  # pixels, which files of `generate` have by default


def missing_pairs(study: Study, folder: Path, side: Side) -> list[int]:
    """Return the pairs whose video of a side is not made yet."""
    videos = study.videos(folder)
    return [
        pair
        for pair in range(len(study.prompts))
        if not videos[study.video_name(side, pair)].exists()
    ]


def generated_clips(
    study: Study, pipeline: MagicVideoPipeline, pairs: Sequence[int]
) -> Iterator[Clip]:
    """Yield the video of each of some pairs, made by a model with the seed of the pair."""
    prompts = list(study.prompts)
    requests = pipeline.build_requests(
        prompts, resolve_seeds(study.seed, len(prompts)), study.settings
    )
    for request in (requests[pair] for pair in pairs):
        yield to_uint8(pipeline.generate(request).frames, request.output_scale), request.video_fps


def finished_clips(study: Study, folder: Path, pairs: Sequence[int]) -> Iterator[Clip]:
    """Yield the finished video of each of some pairs.

    Raises:
        UserError: If a video cannot be read.
    """
    paths = match_videos(folder, list(study.prompts))
    for pair in pairs:
        video = open_video_stream(paths[pair])
        yield _enlarged(video), video.fps


def write_clips(
    study: Study, folder: Path, side: Side, pairs: Sequence[int], clips: Iterable[Clip]
) -> Iterator[int]:
    """Write the videos of some pairs of a side, and yield how many are there after each.

    All are encoded alike, and carry no text: that of a finished video names its model.
    """
    videos = study.videos(folder)
    for done, (pair, (pixels, fps)) in enumerate(zip(pairs, clips, strict=True), start=1):
        write_pixels(pixels, fps, "", videos[study.video_name(side, pair)])
        yield done


def _enlarged(video: VideoStream) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    factor = _enlargement(video.height, video.width)
    for frame in video.frames:
        yield to_uint8(frame[None], factor)[0]


def _enlargement(height: int, width: int) -> int:
    """Return the factor for frames of a user's, whose sides must become even for MP4."""
    factor = max(1, _PLEASANT_SIDE // min(height, width))
    return factor + (factor * height % 2 or factor * width % 2)

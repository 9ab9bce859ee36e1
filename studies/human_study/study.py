"""A study: two sets of videos of the same prompts, which raters compare in pairs."""

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
    """Name of the folder, used only in the report."""
    kind: Literal["model", "videos"]
    hash: str
    """Hash of the model folder, or of the finished videos."""


class Study(BaseModel):
    """The settings and videos of a study; votes are stored separately."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: StudyArm
    b: StudyArm
    prompts: tuple[str, ...]
    seed: int
    """Seed of the first video of both models; the next videos have the following seeds."""
    settings: GenerationSettings
    salt: str
    """Determines file names, orders and sides; it is never sent to a browser."""

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
        """Return the path of each video of the study by its name."""
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
        UserError: If the folder holds another study.
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
                    f"{folder} holds a study with another value of {field}, to which its votes "
                    "belong; choose another folder with --study."
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
            f"{folder} holds no study; create one with `python -m studies compare A B --prompts "
            f"FILE --study {folder}`."
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}.") from None


_SUFFIXES = (".mp4", ".webm", ".webp", ".gif")


def describe_source(folder: Path, prompts: list[str]) -> StudyArm:
    """Return the kind of a folder and the hash of its content.

    Raises:
        UserError: If it is neither a complete model folder nor has a video for every prompt.
    """
    name = folder.resolve().name
    if (folder / INDEX_FILE).is_file():
        if not (folder / CHECKSUMS_FILE).is_file():
            raise UserError(f"{folder} has no {CHECKSUMS_FILE}; use a complete copy of the folder.")
        return StudyArm(name=name, kind="model", hash=hash_folder(folder))
    digest = hashlib.sha256()
    for path in match_videos(folder, prompts):
        digest.update(sha256(path).encode())
    return StudyArm(name=name, kind="videos", hash=digest.hexdigest())


def match_videos(folder: Path, prompts: list[str]) -> list[Path]:
    """Return the finished video of each prompt.

    A video belongs to the prompt that is stored in its file. If there is none, it belongs to the
    prompt from which its name is made, as `generate` names files: `a-cat`, `a-cat-7` or `3-a-cat`.
    A prompt that is listed several times gets its videos in the order of their names.

    Raises:
        UserError: If the folder does not exist, or the number of videos of a prompt is wrong.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a model folder or a folder of videos.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(
            f"{folder} is not a model folder and has no video ({', '.join(_SUFFIXES)})."
        )
    stored = {path: _stored_prompt(path) for path in files}
    waiting: dict[str, Iterator[Path]] = {}
    for prompt, wanted in Counter(prompts).items():
        found = [path for path in files if stored[path] == prompt] or [
            path for path in files if stored[path] is None and slugify(prompt) in _slugs(path)
        ]
        if len(found) != wanted:
            raise UserError(
                f"{folder} has {len(found)} videos of {prompt!r}, but the prompts list it {wanted} "
                "times; a video is found by the prompt stored in its file, or by a name like "
                f"{slugify(prompt)}.mp4."
            )
        waiting[prompt] = iter(found)
    return [next(waiting[prompt]) for prompt in prompts]


def _stored_prompt(path: Path) -> str | None:
    try:
        return read_request(path).prompt
    except UserError:
        return None


def _slugs(path: Path) -> set[str]:
    """Return the prompt slugs that a file name may contain, with or without index and seed."""
    unnumbered = re.sub(r"^\d+-", "", path.stem)
    stems = {
        stem for name in (path.stem, unnumbered) for stem in (name, re.sub(r"-\d+$", "", name))
    }
    return {slugify(stem) for stem in stems}


VideoFrames: TypeAlias = tuple[Iterable[UInt8[np.ndarray, "h w 3"]], float]
"""The frames of a video, and its frames per second."""

_MIN_SHOWN_SIDE = 256  # pixels, the default size of files of `generate`


def missing_pairs(study: Study, folder: Path, side: Side) -> list[int]:
    """Return the pairs whose video of a side does not exist yet."""
    videos = study.videos(folder)
    return [
        pair
        for pair in range(len(study.prompts))
        if not videos[study.video_name(side, pair)].exists()
    ]


def generate_videos(
    study: Study, pipeline: MagicVideoPipeline, pairs: Sequence[int]
) -> Iterator[VideoFrames]:
    """Yield the videos of some pairs, generated with the seeds of the pairs."""
    prompts = list(study.prompts)
    requests = pipeline.build_requests(
        prompts, resolve_seeds(study.seed, len(prompts)), study.settings
    )
    for request in (requests[pair] for pair in pairs):
        yield to_uint8(pipeline.generate(request).frames, request.output_scale), request.video_fps


def read_videos(study: Study, folder: Path, pairs: Sequence[int]) -> Iterator[VideoFrames]:
    """Yield the existing videos of some pairs.

    Raises:
        UserError: If a video cannot be read.
    """
    paths = match_videos(folder, list(study.prompts))
    for pair in pairs:
        video = open_video_stream(paths[pair])
        yield _enlarged(video), video.fps


def write_videos(
    study: Study, folder: Path, side: Side, pairs: Sequence[int], videos: Iterable[VideoFrames]
) -> Iterator[int]:
    """Write the videos of some pairs of a side, and yield the number of finished ones.

    All are encoded with the same settings and without metadata, which could reveal the model.
    """
    paths = study.videos(folder)
    for done, (pair, (pixels, fps)) in enumerate(zip(pairs, videos, strict=True), start=1):
        write_pixels(pixels, fps, "", paths[study.video_name(side, pair)])
        yield done


def _enlarged(video: VideoStream) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    factor = _enlargement(video.height, video.width)
    for frame in video.frames:
        yield to_uint8(frame[None], factor)[0]


def _enlargement(height: int, width: int) -> int:
    """Return the factor for a user's frames; the resulting sides must be even for MP4."""
    factor = max(1, _MIN_SHOWN_SIDE // min(height, width))
    return factor + (factor * height % 2 or factor * width % 2)

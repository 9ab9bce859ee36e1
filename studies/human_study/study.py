"""A study: which videos are compared, in which order and on which side, fixed once and kept."""

import hashlib
import secrets
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError
from magicvideo.pipelines.request import GenerationSettings

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
    """All that decides what a rater is shown; votes are kept beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: StudyArm
    b: StudyArm
    prompts: tuple[str, ...]
    seed: int
    """Of the first video of both models; the others count on."""
    settings: GenerationSettings
    salt: str
    """Decides names of files, orders and sides, and is never served."""

    def source(self, side: Side) -> StudyArm:
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
        """Return the name of a video's file, which tells nothing to who does not know the salt."""
        return f"{self._digest('video', side, str(pair))[:32]}.mp4"

    def videos(self, folder: Path) -> dict[str, Path]:
        """Return where each video of the study is, by its name."""
        names = [self.video_name(s, pair) for s in SIDES for pair in range(len(self.prompts))]
        return {name: folder / _VIDEOS / name for name in names}

    def _digest(self, *parts: str) -> str:
        return hashlib.sha256("\0".join((self.salt, *parts)).encode()).hexdigest()


def other_side(side: Side) -> Side:
    """Return the side that is not this one."""
    return "b" if side == "a" else "a"


def open_study(
    folder: Path,
    a: StudyArm,
    b: StudyArm,
    prompts: list[str],
    seed: int,
    settings: GenerationSettings,
) -> Study:
    """Return the study in a folder, begun there where there is none.

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

"""The files that describe a prepared folder: `dataset.json`, and `manifest.jsonl` for the clips.

A prepared folder holds `clips/*.npy` next to these two files: uint8 arrays `f h w c`, where c=4 is
premultiplied RGBA and c=3 is RGB. `manifest.jsonl` is written last, so its presence means that the
folder is complete.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from magicvideo.atomic_io import atomic_file
from magicvideo.data.text_files import TextFileError, iter_lines, read_text
from magicvideo.errors import UserError

MANIFEST = "manifest.jsonl"
DATASET = "dataset.json"
FORMAT = 2

_MAX_INFO = 1 << 20  # bytes

Split: TypeAlias = Literal["train", "validation", "heldout"]
"""Training reads the first, evaluation the last; the other is read where a protocol names it."""
Fit: TypeAlias = Literal["crop", "pad"]
"""How frames of another shape are fitted: cut at two sides, or with bars added."""
# no other place, so that a prepared folder from elsewhere cannot name files outside itself
ClipFile: TypeAlias = Annotated[str, StringConstraints(pattern=r"^clips/[a-z0-9_-]+\.npy$")]
FrameRate: TypeAlias = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
Side: TypeAlias = Annotated[int, Field(gt=0, le=4096)]


class Attributes(BaseModel):
    """The parts of a description, from which captions in varied wording are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    base: str
    """The name without the skin tone: "woman running"."""
    keywords: tuple[str, ...] = ()
    skin_tone: str | None = None
    """None for no tone or the default tone, which captions do not name."""
    gender: str | None = None
    group: str = ""
    subgroup: str = ""
    activity: str = ""
    """The base without the gender, as an opaque key: equal for "woman running", "man running"."""


class ClipRecord(BaseModel):
    """One line of the manifest: a prepared clip, with captions or the attributes to make one.

    A clip may have neither: stages without text train on it, and stages with text treat it like a
    clip whose caption was dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    file: ClipFile
    """Relative to the prepared folder."""
    frames: Annotated[int, Field(gt=0, le=1_000_000)]
    fps: FrameRate
    channels: Literal[3, 4]
    split: Split
    loops: bool
    """Whether the first frame may follow the last."""
    sha256: str
    """Of the file in the prepared folder."""
    text: str | None = None
    alt_captions: tuple[str, ...] = ()
    """Further captions of the same clip; training draws one of all, `text` is the canonical one."""
    attributes: Attributes | None = None

    @property
    def has_caption(self) -> bool:
        """Return whether the clip has a caption or attributes."""
        return bool(self.text or self.attributes)

    @property
    def subject(self) -> str:
        """Return what the clip shows: the name without skin tone, the caption, or else the id."""
        return self.attributes.base if self.attributes else self.text or self.id


class FrameSize(NamedTuple):
    """Height and width of frames in pixels; as text "64", or "96x64" for 96 pixels of width."""

    height: int
    width: int

    def __str__(self) -> str:
        """Return the size as the command line has it."""
        return str(self.height) if self.height == self.width else f"{self.width}x{self.height}"


class DatasetInfo(BaseModel):
    """The settings of a prepared folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    source: str
    origin: str
    """The folder that the clips were read from."""
    height: Side
    """Of the frames, in pixels."""
    width: Side
    fit: Fit = "crop"
    frame_step: PositiveInt = 1
    """One frame in so many of the source was kept; frame rates are those of the kept frames."""
    licence: str
    split_rule: str

    @property
    def frame_size(self) -> FrameSize:
        """Return height and width of the frames."""
        return FrameSize(self.height, self.width)

    @property
    def size(self) -> int:
        """Return the side of square frames.

        Raises:
            UserError: If the frames are not square.
        """
        return square_side(self.height, self.width)

    @model_validator(mode="before")
    @classmethod
    def _read_format_1(cls, values: Any) -> Any:  # noqa: ANN401 (any JSON value)
        """Accept folders of format 1, which had square frames and called the frame step `every`."""
        if not isinstance(values, dict) or values.get("format") != 1:
            return values
        renamed = {"size": "height", "every": "frame_step"}
        upgraded = {renamed.get(name, name): value for name, value in values.items()}
        return {**upgraded, "format": 2, "width": upgraded.get("height")}


def square_side(height: int, width: int) -> int:
    """Return the side of square frames.

    Raises:
        UserError: If the frames are not square.
    """
    if height != width:
        raise UserError(
            f"This needs square frames, and those of the data are {width}x{height}; prepare the "
            "data with one number as --size."
        )
    return height


def write_manifest(folder: Path, clips: list[ClipRecord]) -> None:
    """Write `manifest.jsonl`, one clip a line, sorted by id so that sample order is stable."""
    lines = [clip.model_dump_json(exclude_defaults=True) + "\n" for clip in clips]
    with atomic_file(folder / MANIFEST) as partial:
        partial.write_text("".join(sorted(lines)), encoding="utf-8")


def read_manifest(folder: Path) -> list[ClipRecord]:
    """Return the clips of a prepared folder.

    Raises:
        UserError: If the folder was not prepared to the end, or a line is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} has no {MANIFEST}; make it with `magicvideo data prepare SOURCE {folder}`."
        )
    try:
        return [ClipRecord.model_validate_json(line) for line in iter_lines(path)]
    except (ValidationError, TextFileError):
        raise UserError(
            f"{path} is damaged; delete it and run `magicvideo data prepare` again."
        ) from None


def write_info(folder: Path, info: DatasetInfo) -> None:
    """Write `dataset.json`."""
    with atomic_file(folder / DATASET) as partial:
        partial.write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_info(folder: Path) -> DatasetInfo:
    """Return the settings of a prepared folder.

    Raises:
        UserError: If `dataset.json` is missing, damaged or of another format version.
    """
    path = folder / DATASET
    if not path.exists():
        raise UserError(
            f"{folder} is not a prepared data set, it has no {DATASET}; make one with "
            "`magicvideo data prepare`."
        )
    try:
        return DatasetInfo.model_validate_json(read_text(path, _MAX_INFO))
    except TextFileError as error:
        raise UserError(f"{path} {error}.") from None
    except ValidationError as error:
        if any(mistake["loc"] == ("format",) for mistake in error.errors()):
            raise UserError(
                f"{path} has another format than {FORMAT}, which this version reads; prepare the "
                "data anew."
            ) from None
        raise UserError(f"{path} is damaged; prepare the data into a new folder.") from None

"""The prepared folder: what it says of itself (`dataset.json`) and of each clip (`manifest.jsonl`).

A prepared folder holds `clips/*.npy` beside these two files: uint8 arrays `f h w c`, where c=4 is
premultiplied RGBA and c=3 is RGB. `manifest.jsonl` is written last, so its presence means that the
folder is whole.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError

MANIFEST = "manifest.jsonl"
DATASET = "dataset.json"
FORMAT = 1

Split: TypeAlias = Literal["train", "validation", "heldout"]
"""Training reads the first, evaluation the last; the other is read where a protocol names it."""
# no other place, so that a prepared folder from elsewhere cannot name files outside itself
ClipFile: TypeAlias = Annotated[str, StringConstraints(pattern=r"^clips/[a-z0-9_-]+\.npy$")]


class Attributes(BaseModel):
    """What is known of a clip in parts, from which captions in varied wording are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    base: str
    """The name less the skin tone: "woman running"."""
    keywords: tuple[str, ...] = ()
    skin_tone: str | None = None
    """None where there is no tone or the default one, which captions leave unnamed."""
    gender: str | None = None
    group: str = ""
    subgroup: str = ""
    activity: str = ""
    """The base less the gender, as an opaque key: equal for "woman running" and "man running"."""


class Clip(BaseModel):
    """One line of the manifest: a prepared clip, with captions or the attributes to make one.

    A clip may have neither: it serves the stages that learn from frames, and the text stages take
    it as they take a clip whose caption they dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    file: ClipFile
    """Relative to the prepared folder."""
    frames: PositiveInt
    fps: PositiveFloat
    channels: Literal[3, 4]
    split: Split
    loops: bool
    """Whether the first frame may follow the last."""
    sha256: str
    """Of the file in the prepared folder."""
    text: str | None = None
    other_texts: tuple[str, ...] = ()
    """Further captions of the same clip; training draws one of all, `text` is the canonical one."""
    attributes: Attributes | None = None

    @property
    def has_caption(self) -> bool:
        """Tell whether anything is said of the clip."""
        return bool(self.text or self.attributes)


class DatasetInfo(BaseModel):
    """What a prepared folder says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    source: str
    origin: str
    """The folder that the clips were read from."""
    size: PositiveInt
    """Side of the square frames in pixels."""
    every: PositiveInt = 1
    """Of how many frames of the source one was kept; frame rates are those of what was kept."""
    licence: str
    split_rule: str


def write_manifest(folder: Path, clips: list[Clip]) -> None:
    """Write `manifest.jsonl`, one clip a line, sorted by id so that sample order is stable."""
    lines = [clip.model_dump_json(exclude_defaults=True) + "\n" for clip in clips]
    with atomic_file(folder / MANIFEST) as partial:
        partial.write_text("".join(sorted(lines)), encoding="utf-8")


def read_manifest(folder: Path) -> list[Clip]:
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
        return [Clip.model_validate_json(line) for line in path.read_bytes().splitlines()]
    except ValidationError:
        raise UserError(
            f"{path} is damaged; delete it and run `magicvideo data prepare` again."
        ) from None


def write_info(folder: Path, info: DatasetInfo) -> None:
    """Write `dataset.json`."""
    with atomic_file(folder / DATASET) as partial:
        partial.write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_info(folder: Path) -> DatasetInfo:
    """Return what a prepared folder says of itself.

    Raises:
        UserError: If `dataset.json` is missing, damaged or of another format version.
    """
    path = folder / DATASET
    try:
        info = DatasetInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a prepared data set, it has no {DATASET}; make one with "
            "`magicvideo data prepare`."
        ) from None
    except ValidationError:
        raise UserError(f"{path} is damaged; prepare the data into a new folder.") from None
    if info.format != FORMAT:
        raise UserError(
            f"{path} has format {info.format}, this version reads {FORMAT}; prepare the data anew."
        )
    return info

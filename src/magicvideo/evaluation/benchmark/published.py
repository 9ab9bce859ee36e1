"""Published results of MagicVideo and its successors, with their sources."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

_ROWS = Path(__file__).parent / "published.yaml"


class PublishedResult(BaseModel):
    """One model on one data set; None where nothing was published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    data: Literal["msr-vtt", "ucf-101"]
    fid: float | None = None
    clip_fid: float | None = None
    """Frechet distance of frames by features of CLIP."""
    fvd: float | None = None
    clipsim: float | None = None
    inception: float | None = Field(default=None, alias="is")
    """Inception Score of C3D trained on UCF-101, which is not that of single frames."""
    source: str
    note: str = ""


def published_rows(data: str | None) -> list[PublishedResult]:
    """Return the results on a data set, ordered by publication where known."""
    rows = TypeAdapter(list[PublishedResult]).validate_python(
        yaml.safe_load(_ROWS.read_text(encoding="utf-8"))
    )
    return [row for row in rows if row.data == data]

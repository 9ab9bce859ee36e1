"""What the Train and Data tabs show, read from the disk whenever they are looked at."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from magicvideo.data.captions import canonical_caption
from magicvideo.data.manifest import ClipRecord, read_info, read_manifest
from magicvideo.data.prepare import SKIPPED
from magicvideo.errors import UserError

_LOG = "log.jsonl"
_MOST_POINTS = 600
_MOST_RUNS = 200
_SHEET_BYTES = 8_000_000
_CLIPS = 24
_CLIP_FRAMES, _CLIP_SIDE = 12, 96


@dataclass(frozen=True)
class ShownClip:
    """A clip as a small moving picture."""

    id: str
    caption: str
    facts: str
    image: str


@dataclass(frozen=True)
class ShownSheet:
    """A sample sheet."""

    name: str
    image: str


class RunsView:
    """Training runs below a folder: each folder that holds a log.

    Args:
        folder: Where runs are, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def hint(self) -> str:
        """Return what to do where there is no run to show."""
        if self._folder is None:
            return "Start the studio with --runs FOLDER to see training runs here."
        return f"There is no training run in {self._folder} yet."

    def names(self) -> list[str]:
        """Return the runs, the newest first."""
        if self._folder is None:
            return []
        logs = [
            path for depth in ("*", "*/*", "*/*/*") for path in self._folder.glob(f"{depth}/{_LOG}")
        ]
        logs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.relative_to(self._folder).as_posix() for path in logs[:_MOST_RUNS]]

    def values(self, name: str) -> list[str]:
        """Return what a run logs."""
        lines = self._lines(name)
        return sorted({key for line in lines[-50:] for key in line if key != "step"})

    def curve(self, name: str, value: str) -> pd.DataFrame:
        """Return one logged value over the steps, thinned to what a plot can show."""
        points = [
            (line["step"], line[value])
            for line in self._lines(name)
            if isinstance(line.get(value), int | float)
        ]
        kept = points[:: max(1, len(points) // _MOST_POINTS)]
        return pd.DataFrame(kept, columns=["step", "value"])

    def facts(self, name: str, value: str) -> list[tuple[str, str]]:
        """Return the figures of the last step."""
        lines = self._lines(name)
        if not lines:
            return []
        last = lines[-1]
        return [("step", f"{last['step']:,}"), (value, f"{last.get(value, float('nan')):.5g}")]

    def sheet(self, name: str) -> ShownSheet | None:
        """Return the newest sample sheet of a run."""
        if self._folder is None or name not in self.names():
            return None
        sheets = sorted((self._folder / name / "samples").glob("step-*.png"))
        if not sheets or sheets[-1].stat().st_size > _SHEET_BYTES:
            return None
        return ShownSheet(sheets[-1].stem, _data_address(sheets[-1].read_bytes(), "png"))

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """Return the log of a run; a line that is damaged or half written is passed over."""
        if self._folder is None or name not in self.names():
            return []
        found = []
        for line in (self._folder / name / _LOG).read_bytes().splitlines():
            values = _json_object(line)
            if isinstance(values.get("step"), int):
                found.append(values)
        return found


class DataView:
    """A prepared data set.

    Args:
        folder: The prepared folder, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @property
    def is_there(self) -> bool:
        """Tell whether there is a folder to show."""
        return self._folder is not None

    def hint(self) -> str:
        """Return what to do where there is none."""
        return "Start the studio with --data FOLDER to see a prepared data set here."

    def clips(self, search: str) -> tuple[str, list[ShownClip]]:
        """Return a summary, and clips whose captions hold all words."""
        assert self._folder is not None
        try:
            info, clips = read_info(self._folder), read_manifest(self._folder)
        except UserError as error:
            return str(error), []
        words = search.lower().split()
        found = [clip for clip in clips if all(word in _caption(clip).lower() for word in words)]
        shown = [self._show(clip) for clip in found[:_CLIPS]]
        frames = sum(clip.frames for clip in clips)
        matching = f"{len(found):,} have these words, " if words else ""
        summary = (
            f"{len(clips):,} clips of {info.width}x{info.height} pixels with {frames:,} frames, "
            f"prepared from {info.source}; {matching}{len(shown)} are shown."
        )
        return summary, [clip for clip in shown if clip is not None]

    def skipped(self) -> list[tuple[str, str]] | None:
        """Return the files that were skipped and why, or None where there is no record."""
        assert self._folder is not None
        path = self._folder / SKIPPED
        if not path.is_file():
            return None
        lines = [_json_object(line) for line in path.read_bytes().splitlines()]
        return [(str(line.get("file", "")), str(line.get("reason", ""))) for line in lines]

    def _show(self, clip: ClipRecord) -> ShownClip | None:
        assert self._folder is not None
        try:
            frames = np.load(self._folder / clip.file, mmap_mode="r", allow_pickle=False)
            picked = np.linspace(0, len(frames) - 1, _CLIP_FRAMES).astype(int)
            pictures = [_small(np.asarray(frames[index])) for index in picked]
        except (OSError, ValueError):
            return None
        holder = io.BytesIO()
        pictures[0].save(
            holder,
            format="WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 * clip.frames / clip.fps / len(pictures)),
            loop=0,
            quality=70,
            method=0,
        )
        facts = f"{clip.frames} frames, {clip.fps:g} a second, {clip.split}"
        return ShownClip(clip.id, _caption(clip), facts, _data_address(holder.getvalue(), "webp"))


def _caption(clip: ClipRecord) -> str:
    return canonical_caption(clip, None) if clip.has_caption else ""


def _small(frame: np.ndarray) -> Image.Image:
    """Return a frame, a transparent one on white."""
    if frame.shape[-1] == 4:  # premultiplied
        rest = 255 - frame[..., 3:].astype(np.int16)
        frame = (frame[..., :3] + rest).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(frame))
    picture.thumbnail((_CLIP_SIDE, _CLIP_SIDE))
    return picture


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _data_address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

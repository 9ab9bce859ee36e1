"""Metrics of a stage: a JSON line per update, and optionally a tracker.

Errors of logging, such as a full disk, are only warnings.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from einops import rearrange
from PIL import Image

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError
from magicvideo.limits import parse_json
from magicvideo.shapes import Frames

FILE = "log.jsonl"

_logger = logging.getLogger(__name__)

TrackerName: TypeAlias = Literal["tensorboard", "wandb", "none"]


def check_tracker(tracker: TrackerName) -> None:
    """Check that a tracker is installed.

    Raises:
        UserError: If it is not. The message says how to install it.
    """
    if tracker != "none" and find_spec(tracker) is None:
        raise UserError(
            f"tracker={tracker} needs {tracker}, which is not installed: pip install {tracker}, or "
            "set tracker=none."
        )


class MetricsLogger:
    """Writes metrics to `log.jsonl` in a stage's folder, and to a tracker.

    Args:
        folder: The stage's folder.
        first_step: Step of the checkpoint. Lines of later steps are removed, because these steps
            are repeated.
        tracker: One of accelerate's trackers.
        config: Settings of the stage, stored by the tracker.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        tracker: TrackerName = "none",
        config: dict[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        _keep_until(path, first_step)
        self._lines = path.open("a", encoding="utf-8")
        self._failed: set[str] = set()
        self._tracker = _start(tracker, folder, first_step, config or {})

    def __enter__(self) -> "MetricsLogger":
        """Return the logger; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file and the tracker."""
        with self._tolerate(FILE):
            self._lines.close()
        if self._tracker is not None:
            with self._tolerate("the tracker"):
                self._tracker.finish()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the metrics of an update."""
        with self._tolerate(FILE):
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()
        if self._tracker is not None:
            with self._tolerate("the tracker"):
                self._tracker.log(values, step=step)

    def log_image(self, step: int, image: Image.Image) -> None:
        """Log a sheet of samples."""
        if self._tracker is not None:
            # b h w c, as both trackers expect
            pixels = np.asarray(image.convert("RGB"))[None]
            with self._tolerate("the tracker"):
                self._tracker.log_images({"samples": pixels}, step=step, **self._image_options())

    @contextmanager
    def _tolerate(self, what: str) -> Iterator[None]:
        """Convert errors of logging to a single warning.

        Trackers raise various errors, some of them for an earlier call, because TensorBoard writes
        in a thread.
        """
        try:
            yield
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                _logger.warning("%s cannot be written (%s); training continues.", what, error)

    def _image_options(self) -> dict[str, str]:
        return {"dataformats": "NHWC"} if isinstance(self._tracker, TensorBoardTracker) else {}


def _start(
    tracker: TrackerName, folder: Path, first_step: int, config: dict[str, Any]
) -> GeneralTracker | None:
    check_tracker(tracker)
    if tracker == "tensorboard":
        board = TensorBoardTracker("tensorboard", str(folder), purge_step=first_step + 1)
        board.start()
        return board
    if tracker == "wandb":
        run = WandBTracker(
            "magicvideo",
            name=f"{folder.parent.name}-{folder.name}",
            dir=str(folder),
            id=f"{folder.parent.name}-{folder.name}",
            resume="allow",
        )
        run.start()
        run.store_init_configuration(config)
        return run
    return None


def _keep_until(path: Path, last_step: int) -> None:
    """Remove the lines of later steps and invalid lines."""
    if not path.is_file():
        return
    kept, lines = [], path.read_text(encoding="utf-8", errors="replace").splitlines()
    num_damaged = 0
    for number, line in enumerate(lines, start=1):
        step = _step_of(line)
        if step is None:
            num_damaged += number < len(lines)  # the last line may be truncated after a kill
        elif step <= last_step:
            kept.append(line + "\n")
    if num_damaged:
        _logger.warning("%s: %d damaged lines were removed.", path, num_damaged)
    with atomic_file(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> int | None:
    """Return the step of a line, or None if it is damaged."""
    try:
        values = parse_json(line)
    except ValueError:
        return None
    step = values.get("step") if isinstance(values, dict) else None
    return step if isinstance(step, int) else None


def image_grid(frames: Frames, enlarge: int = 1) -> Image.Image:
    """Return an image with one row per video and one column per frame.

    Args:
        frames: Pixels in [-1, 1].
        enlarge: Integer factor by which pixels are repeated.
    """
    grid = rearrange(frames.float().cpu(), "b f c h w -> (b h) (f w) c")
    pixels = torch.round((grid.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).numpy()
    return Image.fromarray(np.repeat(np.repeat(pixels, enlarge, axis=0), enlarge, axis=1))

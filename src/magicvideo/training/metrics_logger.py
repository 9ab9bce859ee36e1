"""The log of a stage: one JSON line a step for programs, TensorBoard for people."""

import json
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from magicvideo.atomic_io import atomic_file
from magicvideo.shapes import Frames

FILE = "log.jsonl"


class MetricsLogger:
    """Writes `log.jsonl` and TensorBoard events below a stage's folder.

    Args:
        folder: The stage's folder.
        first_step: Steps that were logged after it belong to a run that was cut off between its
            last checkpoint and its end: their lines are dropped, since the steps are made again.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        _keep_until(path, first_step)
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> "MetricsLogger":
        """Return the log; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._lines.close()
        self._board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """MetricsLogger the values of the step that was just made."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def log_image(self, step: int, picture: Image.Image) -> None:
        """MetricsLogger a sample sheet."""
        self._board.add_image(
            "samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC"
        )


def _keep_until(path: Path, last_step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # a kill can cut the last line
        if step <= last_step:
            kept.append(line + "\n")
    with atomic_file(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def image_grid(frames: Frames, enlarge: int = 1) -> Image.Image:
    """Return a picture with one row for each video and one column for each frame.

    Args:
        frames: Pixels in [-1, 1].
        enlarge: Whole number by which every pixel is repeated.
    """
    grid = rearrange(frames.float().cpu(), "b f c h w -> (b h) (f w) c")
    pixels = torch.round((grid.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).numpy()
    return Image.fromarray(np.repeat(np.repeat(pixels, enlarge, axis=0), enlarge, axis=1))

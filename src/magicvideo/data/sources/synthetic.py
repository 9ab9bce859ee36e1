"""A small procedural source: moving shapes with exact captions.

It is written as MP4 files with captions next to them, so that it is read like a user's own clips.
Tests and the documentation use it; nothing is downloaded.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from magicvideo.atomic_io import atomic_file
from magicvideo.data.backgrounds import COLOURS
from magicvideo.errors import UserError

SHAPES = ("circle", "square", "triangle", "diamond")
SHAPE_COLOURS = ("red", "yellow", "green", "blue", "purple")
BACKGROUNDS = ("white", "black", "gray", "pink", "cyan")
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}

SIZE = 64
FRAMES = 30
FPS = 24

_SUPERSAMPLING = 4
_RADIUS = 0.16  # of the side
_TRAVEL = 0.5  # of the side, from the first frame to the last
_POLYGONS = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, -1), (0.95, 0.8), (-0.95, 0.8)),
    "diamond": ((0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)),
}


@dataclass(frozen=True)
class Scene:
    """The contents of one clip."""

    shape: str
    colour: str
    direction: str
    background: str

    @property
    def caption(self) -> str:
        """Return "red circle moving left, white background"."""
        return f"{self.colour} {self.shape} moving {self.direction}, {self.background} background"


def all_scenes() -> list[Scene]:
    """Return every combination, in a fixed shuffled order."""
    combinations = itertools.product(SHAPES, SHAPE_COLOURS, DIRECTIONS, BACKGROUNDS)
    scenes = [Scene(*combination) for combination in combinations]
    order = np.random.default_rng(0).permutation(len(scenes))
    return [scenes[place] for place in order]


def render_frame(scene: Scene, time: float, size: int = SIZE) -> NDArray[np.uint8]:
    """Return one frame `h w 3`; `time` runs from 0 to 1, at 0.5 the shape is in the middle."""
    side = size * _SUPERSAMPLING
    picture = Image.new("RGB", (side, side), COLOURS[scene.background])
    step_x, step_y = DIRECTIONS[scene.direction]
    x = side * (0.5 + step_x * _TRAVEL * (time - 0.5))
    y = side * (0.5 + step_y * _TRAVEL * (time - 0.5))
    radius = side * _RADIUS
    pen, fill = ImageDraw.Draw(picture), COLOURS[scene.colour]
    if scene.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        corners = _POLYGONS[scene.shape]
        pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in corners], fill=fill)
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def write_clips(folder: Path, count: int) -> list[Scene]:
    """Write `count` clips with captions next to them, always the same for the same count.

    Raises:
        UserError: If there are fewer different scenes, or the folder is not empty.
    """
    scenes = all_scenes()
    if not 1 <= count <= len(scenes):
        raise UserError(f"{count} clips cannot be made; ask for 1 to {len(scenes)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name a new one.")
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes[:count]):
        path = folder / f"clip{number:03d}.mp4"
        with atomic_file(path) as partial:
            _encode(partial, scene)
        with atomic_file(path.with_suffix(".txt")) as partial:
            partial.write_text(scene.caption + "\n", encoding="utf-8")
    return scenes[:count]


def _encode(path: Path, scene: Scene) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            pixels = render_frame(scene, number / (FRAMES - 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())

"""Named backgrounds, which are put behind transparent clips and recognised in generated frames."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from magicvideo.errors import UserError

Direction: TypeAlias = Literal["vertical", "horizontal", "diagonal"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "red": (220, 30, 35),
    "orange": (250, 140, 10),
    "yellow": (250, 225, 40),
    "lime": (150, 235, 50),
    "green": (25, 140, 55),
    "cyan": (65, 220, 230),
    "blue": (35, 95, 235),
    "navy": (15, 25, 100),
    "purple": (135, 40, 175),
    "pink": (255, 150, 205),
    "brown": (125, 70, 25),
}
"""Plain colours in RGB, 0 to 255. Any two are at least 85 apart, so that they differ clearly
even in a blurred picture."""

DIRECTIONS: tuple[Direction, ...] = ("vertical", "horizontal", "diagonal")

PLAIN_FRACTION = 0.7
"""Fraction of plain colours among random backgrounds; the rest are gradients."""

_GRADIENT = re.compile(r"gradient from (\w+) to (\w+)")


@dataclass(frozen=True)
class Background:
    """A plain colour, or a gradient from `colour` to `second`."""

    colour: str
    second: str | None = None
    direction: Direction = "vertical"

    @property
    def name(self) -> str:
        """Return "blue" or "gradient from blue to pink", the form that `parse_background` reads."""
        return f"gradient from {self.colour} to {self.second}" if self.second else self.colour

    @property
    def phrase(self) -> str:
        """Return the words for a caption: "blue background"."""
        return f"{self.name} background"


def parse_background(name: str) -> Background:
    """Return the background with this name: a colour, or "gradient from blue to pink".

    Raises:
        UserError: If a colour is not known.
    """
    gradient = _GRADIENT.fullmatch(name)
    first, second = gradient.groups() if gradient else (name, None)
    for colour in (first, second or first):
        if colour not in COLOURS:
            raise UserError(
                f"{colour!r} is not a background colour; take one of {', '.join(COLOURS)} or "
                "'gradient from blue to pink'."
            )
    return Background(first, second)


def random_background(rng: np.random.Generator) -> Background:
    """Draw a plain colour (70 %) or a gradient between two different colours (30 %)."""
    names = list(COLOURS)
    if rng.random() < PLAIN_FRACTION:
        return Background(names[rng.integers(len(names))])
    first, second = rng.choice(len(names), size=2, replace=False)
    return Background(names[first], names[second], DIRECTIONS[rng.integers(len(DIRECTIONS))])


def render_background(background: Background, height: int, width: int) -> NDArray[np.float32]:
    """Return the background as pixels in [0, 255].

    The shape is `h w 3`, or `1 1 3` for a plain colour, which broadcasts over a picture.
    A gradient begins at the top, at the left or at the top left corner.
    """
    first = np.array(COLOURS[background.colour], np.float32)
    if background.second is None:
        return first[None, None]
    second = np.array(COLOURS[background.second], np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    right = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    ramps: dict[Direction, NDArray[np.float32]] = {
        "vertical": down,
        "horizontal": right,
        "diagonal": (down + right) * np.float32(0.5),
    }
    rendered: NDArray[np.float32] = first + (second - first) * ramps[background.direction]
    return np.broadcast_to(rendered, (height, width, 3))


def nearest_colour(rgb: ArrayLike) -> str:
    """Return the name of the plain colour nearest to `rgb` (0 to 255) by Euclidean distance."""
    table = np.array(list(COLOURS.values()), np.float64)
    distance = ((table - np.asarray(rgb, np.float64)) ** 2).sum(axis=1)
    return list(COLOURS)[int(distance.argmin())]

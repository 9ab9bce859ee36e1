"""The sizes at which the networks are compared, and their timing settings."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from magicvideo.data.manifest import FrameSize
from magicvideo.training.recipe import read_recipe
from magicvideo.training.resolve import unet_config
from studies.cost.networks import PAPER, Workload

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji.yaml"


@dataclass(frozen=True)
class Size:
    """One size of the networks, and the settings of the timing.

    Attributes:
        label: Its label in the report.
        work: Sizes of the networks and of their inputs.
        timed_frames: Frames per video when seconds are measured.
        rounds: Number of rounds.
        backward: Whether the backward pass is timed too; there is then a warm-up pass.
    """

    label: str
    work: Workload
    timed_frames: int
    rounds: int
    backward: bool


def emoji() -> Size:
    """Return the size of the emoji recipe, with a batch of two videos."""
    recipe = read_recipe(RECIPE, [])
    assert recipe.clip is not None
    config, tokens = unet_config(recipe, FrameSize(64, 64)), recipe.clip.max_tokens
    work = Workload(config, videos=2, frames=16, side=8, tokens=tokens, head_width=32)
    return Size("the channels of the emoji recipe", work, 16, 8, backward=True)


def stable_diffusion() -> Size:
    """Return the size of Stable Diffusion 1.5, with one video."""
    return Size("the channels of Stable Diffusion 1.5", PAPER, 8, 2, backward=False)


class Width(str, Enum):
    """Names of the sizes on the command line."""

    EMOJI = "emoji"
    SD = "sd"


SIZES: dict[Width, Callable[[], Size]] = {Width.EMOJI: emoji, Width.SD: stable_diffusion}

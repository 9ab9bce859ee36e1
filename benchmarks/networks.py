"""The widths at which the networks are compared, and how each is timed."""

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
    """One width of the networks, and how they are timed.

    Attributes:
        label: What the report calls it.
        work: Sizes of the networks, and the videos that they are given.
        timed_frames: Frames of a video when seconds are measured.
        rounds: Repetitions.
        backward: Whether the backward pass is timed, after a pass to warm up, which a long one
            does not need.
    """

    label: str
    work: Workload
    timed_frames: int
    rounds: int
    backward: bool


def emoji() -> Size:
    """Return the denoiser of the emoji recipe, with two videos."""
    recipe = read_recipe(RECIPE, [])
    assert recipe.clip is not None
    config, tokens = unet_config(recipe, FrameSize(64, 64)), recipe.clip.max_tokens
    work = Workload(config, videos=2, frames=16, side=8, tokens=tokens, head_width=32)
    return Size("the emoji recipe's width", work, 16, 8, backward=True)


def stable_diffusion() -> Size:
    """Return the denoiser at the width of Stable Diffusion 1.5, with one video."""
    return Size("the width of Stable Diffusion 1.5", PAPER, 8, 2, backward=False)


class Width(str, Enum):
    """Names of the widths on the command line."""

    EMOJI = "emoji"
    SD = "sd"


SIZES: dict[Width, Callable[[], Size]] = {Width.EMOJI: emoji, Width.SD: stable_diffusion}

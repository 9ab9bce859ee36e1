"""Protocols as data: a YAML file holds every setting that influences a result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from magicvideo.data.manifest import Split
from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.protocol import (
    KIND,
    Benchmark,
    GuidanceScale,
    GuidanceStop,
    InferenceSteps,
    Scheduler,
)
from magicvideo.evaluation.metrics.distribution import Divisor
from magicvideo.evaluation.prompt_sets import Wording
from magicvideo.evaluation.results_page import NAME

ScoreName: TypeAlias = Literal[
    "caption_first",
    "caption_first_five",
    "caption_median_rank",
    "caption_first_same_background",
    "caption_first_five_same_background",
    "caption_median_rank_same_background",
    "background_colour",
    "skin_tone",
    "temporal_change",
    "temporal_power_low",
    "temporal_power_high",
    "flicker",
    "frechet",
    "psnr",
]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetRange(_Settings):
    """The target range of a score; a missing bound is no requirement."""

    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, value: float) -> bool:
        """Tell whether a value lies between the bounds, which are included."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


class PromptSet(_Settings):
    """Captions of clips that are drawn from one split, each on a plain background.

    Attributes:
        wording: What the model is asked for: captions, or the same in natural wording that training
            never saw. The judge reads captions in either case.
        stages: Of the generation. With "interpolation", all frames are compared with those of
            real clips at their full rate.
    """

    name: str
    split: Split
    prompts: PositiveInt
    wording: Wording = "caption"
    stages: tuple[Literal["keyframes", "interpolation"], ...] = ("keyframes",)
    targets: Mapping[ScoreName, TargetRange] = {}


class AutoencoderSet(_Settings):
    """Clips whose reconstruction is measured, on plain colours and gradients."""

    split: Split
    clips: PositiveInt
    targets: Mapping[ScoreName, TargetRange] = {}


class Protocol(_Settings):
    """A protocol; the comments of `protocols/emoji-heldout.yaml` explain its values."""

    name: str = Field(pattern=f"^{NAME}$")
    about: str
    seed: int = Field(ge=0)
    num_frames: int = Field(ge=2)
    stride: PositiveInt
    scheduler: Scheduler
    num_inference_steps: InferenceSteps
    guidance_scale: GuidanceScale
    guidance_stop: GuidanceStop = 1.0
    pool_size: int = Field(ge=1)
    """Captions among which the own one is to rank first; 1 leaves these scores out."""
    reference_clips: int = Field(ge=0)
    """Real clips that the Frechet distance is measured from; fewer than 2 leave it out."""
    covariance_divisor: Divisor
    resamples: int = Field(default=100, ge=2)
    extrapolate: bool = False
    sets: tuple[PromptSet, ...]
    autoencoder: AutoencoderSet


def read_protocol(name: str) -> Protocol:
    """Return a protocol of prepared emoji: one of the package, by name, or one by path.

    Raises:
        UserError: If there is no such protocol, it is of another kind, or a value in it is wrong.
            It names the value.
    """
    found = read_any_protocol(name)
    if isinstance(found, Benchmark):
        raise UserError(f"{name} is a benchmark; a protocol with sets of prompts is wanted here.")
    return found


def read_any_protocol(name: str) -> Protocol | Benchmark:
    """Return a protocol of either kind, which comes with the package, or lies at a path.

    Raises:
        UserError: If there is no such protocol, or a value in it is wrong. It names the value.
    """
    shipped = shipped_protocols()
    source = shipped.get(name, Path(name))
    if not source.is_file():
        raise UserError(
            f"{name!r} is neither a protocol ({', '.join(sorted(shipped))}) nor a YAML file; "
            "`magicvideo evaluate --help` shows what else can be done."
        )
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
        is_benchmark = isinstance(values, dict) and values.get("kind") == KIND
        return (Benchmark if is_benchmark else Protocol).model_validate(values)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} is not YAML: {reason}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{name}: {where} is wrong: {first['msg']}.") from None


def shipped_protocols() -> dict[str, Path]:
    """Return the protocols that come with the package."""
    folder = Path(__file__).parent / "protocols"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}

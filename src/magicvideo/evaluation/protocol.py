"""Protocols as data: a YAML file holds every setting that influences a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

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
from magicvideo.pipelines.request import GenerationSettings

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
    """The target range of a score; a missing bound is not checked."""

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
        UserError: If the protocol does not exist, is of another kind, or has an invalid value.
            It names the value.
    """
    found = read_any_protocol(name)
    if isinstance(found, Benchmark):
        raise UserError(f"{name} is a benchmark; a protocol with sets of prompts is wanted here.")
    return found


def read_any_protocol(name: str) -> Protocol | Benchmark:
    """Return a protocol of either kind, which comes with the package, or lies at a path.

    Raises:
        UserError: If the protocol does not exist or has an invalid value. The message names it.
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


_AnyProtocol = TypeVar("_AnyProtocol", Protocol, Benchmark)


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One point of a sweep; None keeps the protocol's value."""

    steps: int | None = None
    guidance: float | None = None

    @property
    def name(self) -> str:
        """Return the name of its files, such as `steps-5-guidance-1.5`; `` for no change."""
        parts = (("steps", self.steps), ("guidance", self.guidance))
        # not rounded: two values never share a name
        return "-".join(
            f"{what}-{str(value).removesuffix('.0')}" for what, value in parts if value is not None
        )

    def of(self, protocol: _AnyProtocol) -> _AnyProtocol:
        """Return a protocol with these values in it."""
        values = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        changes = {name: value for name, value in values.items() if value is not None}
        if isinstance(protocol, Benchmark):
            generation = protocol.generation.model_copy(update=changes)
            return protocol.model_copy(update={"generation": generation})
        return protocol.model_copy(update=changes)

    def document(self, base: Path) -> Path:
        """Return the path of its results, next to the path without changes."""
        return base.with_stem("-".join(filter(None, (base.stem, self.name))))


def sweep_points(steps: Sequence[int], guidance: Sequence[float]) -> list[SweepPoint]:
    """Return every combination of steps and guidance; without values, one unchanged point.

    Raises:
        UserError: If a value is out of its range.
    """
    for count in steps:
        GenerationSettings(num_inference_steps=count)
    for scale in guidance:
        GenerationSettings(guidance_scale=scale)
        if scale == 0:
            raise UserError("A guidance scale of 0 ignores the prompt; take one above 0.")
    return [
        SweepPoint(steps=count, guidance=scale)
        for count, scale in product(
            dict.fromkeys(steps) or [None], dict.fromkeys(guidance) or [None]
        )
    ]


def section_name(protocol: str, settings: Sequence[SweepPoint]) -> str:
    """Return the name of the section of results; a sweep has a section of its own."""
    is_sweep = any(setting.name for setting in settings)
    return f"{protocol} by steps and guidance" if is_sweep else protocol


def sampling_label(steps: int, guidance: float) -> str:
    """Return the label of a row of a sweep."""
    return f"steps {steps}, guidance {guidance:g}"

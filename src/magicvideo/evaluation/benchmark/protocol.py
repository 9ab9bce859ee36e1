"""Benchmarks as data: a YAML file holds every setting that influences a score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from magicvideo.data.manifest import Split
from magicvideo.data.sources.annotation_list import label_to_prompt
from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.distribution import Divisor
from magicvideo.evaluation.results_page import NAME
from magicvideo.pipelines.request import GenerationSettings

KIND = "benchmark"
_SENTENCES = {"ucf101": Path(__file__).parents[1] / "prompts" / "ucf101.yaml"}
"""Lists of sentences that come with the package."""

PromptKind: TypeAlias = Literal["one_caption", "all_captions", "class_mix", "even_classes"]
Filter: TypeAlias = Literal["bicubic", "bilinear", "box", "lanczos"]
Crop: TypeAlias = Literal["centre", "none"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompts(_Settings):
    """The prompts; `protocols/msrvtt-2990.yaml` and `ucf101-10k-class.yaml` explain.

    Attributes:
        kind: One caption of each clip, drawn at random; all captions of all clips; the class of
            clips, in the mix that the clips have; or each class equally often.
        split: Of the data set, whose captions or classes are taken.
        count: How many, at least; `all_captions` takes what there is.
        wording: How a class becomes a prompt; `{name}` stands for its name.
        sentences: Prompts by the name of the class, in place of the wording; `ucf101` stands for
            the list of the package. Results repeat them all.
    """

    kind: PromptKind
    split: Split
    count: PositiveInt
    wording: str = Field(default="{name}", pattern=r"^[^{}]*\{name\}[^{}]*$")
    sentences: Mapping[str, str] = {}

    @field_validator("sentences", mode="before")
    @classmethod
    def _by_readable_name(cls, given: Any) -> Any:  # noqa: ANN401 - it is not checked yet
        if isinstance(given, str):
            if given not in _SENTENCES:
                raise ValueError(
                    f"{given!r} is not a list of sentences; use {', '.join(_SENTENCES)}"
                )
            given = yaml.safe_load(_SENTENCES[given].read_text(encoding="utf-8"))
        if not isinstance(given, dict):
            return given
        return {label_to_prompt(str(name)): sentence for name, sentence in given.items()}


def _valid(name: str) -> AfterValidator:
    """Return the check of a generation setting, whose range is defined with the pipeline."""

    def check(value: Any) -> Any:  # noqa: ANN401 - of the setting's type
        try:
            GenerationSettings.from_values({name: value})
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(check)


Scheduler: TypeAlias = Annotated[str, _valid("scheduler")]
InferenceSteps: TypeAlias = Annotated[int, _valid("num_inference_steps")]
GuidanceScale: TypeAlias = Annotated[PositiveFloat, _valid("guidance_scale")]
GuidanceStop: TypeAlias = Annotated[float, _valid("guidance_stop")]


class Generation(_Settings):
    """Generation settings; null is the model's own default."""

    stages: tuple[str, ...] | None = None
    num_frames: PositiveInt | None = None
    video_fps: PositiveFloat | None = None
    """Frames per second of the finished video."""
    scheduler: Scheduler | None = None
    num_inference_steps: InferenceSteps | None = None
    guidance_scale: GuidanceScale | None = None
    guidance_stop: GuidanceStop | None = None


class Reference(_Settings):
    """The real clips: how many, of which split."""

    split: Split
    count: int = Field(ge=4)


class FramePreprocessing(_Settings):
    """The preprocessing of real and generated clips: the middle frames at one size.

    Attributes:
        frames: Of each clip that are scored.
        stride: Between them, at the clip's own rate.
        crop: What is left of a frame before it is resized: its centre square, or all of it, which
            is squashed then.
        side: Of the square that the networks get, in pixels.
        filter: Pillow's, which all antialias.
        image_frames: Of these frames, spread evenly, how many FID, KID and IS use.
    """

    frames: int = Field(ge=2)
    stride: PositiveInt
    crop: Crop
    side: int = Field(ge=16)
    filter: Filter
    image_frames: PositiveInt


class Statistics(_Settings):
    """How scores and their intervals are computed.

    Attributes:
        covariance_divisor: Of Frechet distances.
        neighbours: Of precision and recall.
        seed: Of every draw here: resamples, halves of the real clips, and subsets for infinite
            samples.
        resamples: Of the bootstrap over clips behind intervals of distances and of the Inception
            Score.
        extrapolate: Whether Frechet distances are also given for infinite samples.
    """

    covariance_divisor: Divisor
    neighbours: PositiveInt
    seed: NonNegativeInt
    resamples: int = Field(ge=2)
    extrapolate: bool


class Benchmark(_Settings):
    """A whole benchmark."""

    kind: Literal["benchmark"]
    name: str = Field(pattern=f"^{NAME}$")
    version: PositiveInt
    about: str
    data: Literal["msr-vtt", "ucf-101"] | None = None
    """The data set, as the published rows name it; None for others."""
    seed: NonNegativeInt
    prompts: Prompts
    generation: Generation
    reference: Reference
    preprocessing: FramePreprocessing
    statistics: Statistics

"""A file of ablations: which models are trained, from which recipe, and how they are scored."""

import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import Field, PositiveInt, ValidationError

from magicvideo.data.manifest import Split
from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.protocol import GuidanceScale, InferenceSteps, Scheduler
from magicvideo.training.recipe import StrictModel

Kind: TypeAlias = Literal["denoiser", "decoder", "upscaler"]
_NAME = r"^[a-z0-9+.]+(-[a-z0-9+.]+)*$"


class ScoringConfig(StrictModel):
    """How models are scored; after a change all scores are computed again."""

    seed: int = Field(
        default=1, ge=0, description="of the draws of clips, backgrounds, pools and noise"
    )
    split: Split = "heldout"
    num_frames: int = Field(default=16, ge=2)
    stride: PositiveInt = Field(default=4, description="between the frames of clips")
    loss_clips: int = Field(
        default=146, ge=2, description="on which the held-out error is measured"
    )
    timesteps: tuple[int, ...] = Field(
        default=(99, 249, 399, 549, 699, 849, 949, 999),
        min_length=1,
        description="of the held-out error",
    )
    prompts: int = Field(default=100, ge=2, description="of which a video each is generated")
    num_inference_steps: InferenceSteps = 20
    guidance_scale: GuidanceScale = 4.0
    scheduler: Scheduler = "ddim"
    pool_size: int = Field(
        default=50, ge=2, description="captions among which the own one is to be first"
    )
    reference_clips: int = Field(
        default=1000, ge=2, description="real clips of the Frechet distance"
    )
    decoder_clips: PositiveInt = 60
    decoder_noise: tuple[float, ...] = Field(
        default=(0.0, 0.1),
        min_length=1,
        description="deviations of noise on latents that are decoded",
    )
    upscaler_clips: int = Field(default=60, ge=2)
    upscaler_steps: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    moving_clips: PositiveInt = Field(default=20, description="for the flicker of enlarged frames")
    moving_frames: int = Field(default=12, ge=2)


class Variant(StrictModel):
    """One kind of model: what it changes in the recipe, or which other it is the same as."""

    label: str
    changes: dict[str, Any] = Field(default_factory=dict)
    same_as: str | None = Field(None, description="EXPERIMENT/VARIANT, whose runs are taken")


class Experiment(StrictModel):
    """Models that differ in one thing."""

    title: str
    about: str
    paper: str | None = Field(None, description="what the paper says of it")
    found: str | None = Field(None, description="what came out, in words, once it is known")
    model_kind: Kind = "denoiser"
    budget: Literal["updates", "cost"] = Field(
        "updates",
        description="what the variants have alike: updates as their recipes say, or operations in "
        "all, for which the steps of the last stage are set",
    )
    baseline: str = Field(description="the variant that the others are compared with")
    common: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, Variant] = Field(min_length=1)


class Ablations(StrictModel):
    """All experiments of one page.

    `recipe`, `output` and `scores` are relative to the folder in which the command is run. Changes
    are nested as recipes are; `null` takes a stage out. The scores of a run are one small file,
    which is enough for the page: a run that has them needs no folder in `output` any more.
    """

    name: str = Field(pattern=_NAME)
    about: str
    recipe: Path
    output: Path
    scores: Path
    seeds: tuple[int, ...] = Field(min_length=1)
    common: dict[str, Any] = Field(default_factory=dict)
    scoring: ScoringConfig = ScoringConfig()
    experiments: dict[str, Experiment] = Field(min_length=1)

    def resolve_alias(self, experiment: str, variant: str) -> tuple[str, str]:
        """Return the experiment and the variant whose runs a variant shows: its own or others'."""
        same_as = self.experiments[experiment].variants[variant].same_as
        if same_as is None:
            return experiment, variant
        first, _, second = same_as.partition("/")
        return first, second


def read_ablations(path: Path) -> Ablations:
    """Read a file of ablations.

    Raises:
        UserError: If the file is missing or not YAML, a name or a value is not allowed, or a
            variant that another one names is not there.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; recipes/ablations.yaml comes along.")
    try:
        found = Ablations.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where} is wrong: {first['msg']}.") from None
    if mistake := _mistake(found):
        raise UserError(f"{path}: {mistake}")
    return found


def _mistake(ablations: Ablations) -> str | None:
    """Return the first inconsistency, if any."""
    for name, experiment in ablations.experiments.items():
        for part in (name, *experiment.variants):
            if re.match(_NAME, part) is None:
                return f"{part!r} names folders; take small letters, digits, and - between words."
        if experiment.baseline not in experiment.variants:
            known = ", ".join(experiment.variants)
            return f"{name} has no variant {experiment.baseline!r} as its baseline, but {known}."
        for variant, settings in experiment.variants.items():
            if settings.same_as is not None and not _is_shown(ablations, name, variant):
                return (
                    f"{name}.{variant} is the same as {settings.same_as!r}, which is no "
                    "EXPERIMENT/VARIANT with runs of its own that are measured alike, or it has "
                    "changes."
                )
    return None


def _is_shown(ablations: Ablations, experiment: str, variant: str) -> bool:
    settings = ablations.experiments[experiment].variants[variant]
    first, second = ablations.resolve_alias(experiment, variant)
    other = ablations.experiments.get(first)
    return (
        not settings.changes
        and other is not None
        and second in other.variants
        and other.variants[second].same_as is None
        and other.model_kind == ablations.experiments[experiment].model_kind
    )

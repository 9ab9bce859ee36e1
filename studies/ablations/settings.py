"""Settings of ablations: the models to train, the recipe they change, and the scoring."""

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
    """Settings of the scoring. If they change, all scores are computed again."""

    seed: int = Field(
        default=1, ge=0, description="seed of the choice of clips, backgrounds, pools and noise"
    )
    split: Split = "heldout"
    num_frames: int = Field(default=16, ge=2)
    stride: PositiveInt = Field(default=4, description="distance between the frames of clips")
    loss_clips: int = Field(default=146, ge=2, description="clips for the held-out error")
    timesteps: tuple[int, ...] = Field(
        default=(99, 249, 399, 549, 699, 849, 949, 999),
        min_length=1,
        description="timesteps of the held-out error",
    )
    prompts: int = Field(
        default=100, ge=2, description="number of videos to generate, one per prompt"
    )
    num_inference_steps: InferenceSteps = 20
    guidance_scale: GuidanceScale = 4.0
    scheduler: Scheduler = "ddim"
    pool_size: int = Field(default=50, ge=2, description="number of captions that the judge ranks")
    reference_clips: int = Field(
        default=1000, ge=2, description="real clips for the Frechet distance"
    )
    decoder_clips: PositiveInt = 60
    decoder_noise: tuple[float, ...] = Field(
        default=(0.0, 0.1),
        min_length=1,
        description="standard deviations of the noise on the latents to decode",
    )
    upscaler_clips: int = Field(default=60, ge=2)
    upscaler_steps: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    moving_clips: PositiveInt = Field(
        default=20, description="clips for the flicker of upscaled frames"
    )
    moving_frames: int = Field(default=12, ge=2)


class Variant(StrictModel):
    """One variant: its changes to the recipe, or the other variant whose runs it uses."""

    label: str
    changes: dict[str, Any] = Field(default_factory=dict)
    same_as: str | None = Field(None, description="EXPERIMENT/VARIANT whose runs are used")


class Experiment(StrictModel):
    """Variants that differ in one respect."""

    title: str
    about: str
    paper: str | None = Field(None, description="the claim of the paper")
    found: str | None = Field(None, description="the result in words, once it is known")
    model_kind: Kind = "denoiser"
    budget: Literal["updates", "cost"] = Field(
        "updates",
        description="what is equal for all variants: the updates in the recipe, or the FLOPs of "
        "all "
        "training, to which the steps of the last stage are adjusted",
    )
    baseline: str = Field(description="the variant with which the others are compared")
    common: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, Variant] = Field(min_length=1)


class Ablations(StrictModel):
    """All experiments of one page.

    `recipe`, `output` and `scores` are relative to the current folder. Changes have the structure
    of a recipe; `null` removes a stage. The scores of a run are one small file, from which the page
    is written, so the run's folder in `output` may be deleted afterwards.
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
        """Return the experiment and variant whose runs a variant uses: its own or its alias's."""
        same_as = self.experiments[experiment].variants[variant].same_as
        if same_as is None:
            return experiment, variant
        first, _, second = same_as.partition("/")
        return first, second


def read_ablations(path: Path) -> Ablations:
    """Read the settings of ablations.

    Raises:
        UserError: If the file is missing or not YAML, a name or a value is not allowed, or
            `same_as` names a variant that does not exist.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; the repository has recipes/ablations.yaml.")
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
                return (
                    f"{part!r} cannot be the name of a folder; use lowercase letters, digits, and "
                    "- between words."
                )
        if experiment.baseline not in experiment.variants:
            known = ", ".join(experiment.variants)
            return f"{name}: the baseline {experiment.baseline!r} is not one of {known}."
        for variant, settings in experiment.variants.items():
            if settings.same_as is not None and not _is_valid_alias(ablations, name, variant):
                return (
                    f"{name}.{variant}: same_as {settings.same_as!r} must be an EXPERIMENT/VARIANT "
                    "of the same model_kind without same_as, and the variant must have no changes."
                )
    return None


def _is_valid_alias(ablations: Ablations, experiment: str, variant: str) -> bool:
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

"""The training runs of ablations: a recipe for each variant and seed."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock
from pydantic import ValidationError

from magicvideo.atomic_io import atomic_folder
from magicvideo.errors import UserError
from magicvideo.training.components import OUTPUT, stage_output
from magicvideo.training.dry_run import estimate_run
from magicvideo.training.progress import LineReporter
from magicvideo.training.recipe import Recipe, StageName, load_yaml, parse_recipe
from magicvideo.training.run import RECIPE_FILE, train
from studies.ablations.settings import Ablations, Kind

# stages that train on single frames: variants with the same image network share their outputs
_FRAME_STAGES: tuple[StageName, ...] = ("autoencoder", "clip", "image")
_SHARED = "shared"


@dataclass(frozen=True, kw_only=True)
class AblationRun:
    """The training run of one variant with one seed, in the recipe's `output`.

    Its scores are stored in a separate file, outside the folder of the run.
    """

    experiment: str
    variant: str
    seed: int
    kind: Kind
    recipe: Recipe
    scores: Path

    @property
    def name(self) -> str:
        """Return its name in console messages."""
        return f"{self.experiment}/{self.variant}/{self.seed}"


def expand_runs(ablations: Ablations, only: tuple[str, ...] = ()) -> list[AblationRun]:
    """Return all runs of the experiments, each once, with the seeds of a variant side by side.

    Args:
        ablations: The settings.
        only: Names of experiments; empty for all.

    Raises:
        UserError: If there is no such experiment, or a recipe is not allowed.
    """
    for name in only:
        if name not in ablations.experiments:
            raise UserError(
                f"There is no experiment {name!r}; the experiments are "
                f"{', '.join(ablations.experiments)}."
            )
    places = dict.fromkeys(
        ablations.resolve_alias(name, variant)
        for name in only or ablations.experiments
        for variant in ablations.experiments[name].variants
    )
    values = load_yaml(ablations.recipe)
    return [
        AblationRun(
            experiment=experiment,
            variant=variant,
            seed=seed,
            kind=ablations.experiments[experiment].model_kind,
            recipe=_recipe_of(ablations, values, experiment, variant, seed),
            scores=ablations.scores / f"{experiment}-{variant}-{seed}.json",
        )
        for experiment, variant in places
        for seed in ablations.seeds
    ]


def select_shard(runs: list[AblationRun], shard: str) -> list[AblationRun]:
    """Return every Nth run from the Kth on, for a shard written as `K/N`.

    The seeds of a variant are neighbours. With as many processes as seeds, each process has one
    seed, so no process waits for the shared stages of another.

    Raises:
        UserError: If the shard is not of this form.
    """
    first, _, count = shard.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UserError(f"--shard {shard!r} is not of the form K/N, such as 1/2.")
    return runs[int(first) - 1 :: int(count)]


def train_run(run: AblationRun, output: Path, say: Callable[[str], None]) -> None:
    """Train a run, its shared stages first; finished stages are kept.

    Args:
        run: The run.
        output: Output folder of all ablations.
        say: Called with lines for the console.

    Raises:
        UserError: If its folder was trained with other settings, or training fails.
        Interrupted: After a signal.
    """
    recipe = run.recipe
    base = shared_base_recipe(recipe, output / _SHARED)
    if base is not None:
        with locked(base.output):
            _check_settings(base)
            train(base, None, LineReporter(lambda line: say(f"{base.name}: {line}")))
        for stage in base.stages():
            _copy_output(stage_output(base.output, stage), recipe.output / stage / OUTPUT)
    _check_settings(recipe)
    train(recipe, None, LineReporter(lambda line: say(f"{run.name}: {line}")))


def locked(folder: Path) -> FileLock:
    """Return the lock of a run's folder, for which other processes wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{folder}.lock")


def match_compute(recipe: Recipe, baseline: Recipe) -> Recipe:
    """Return a recipe with the steps of its last stage adjusted to the FLOPs of the baseline.

    Raises:
        UserError: If the earlier stages already cost more than the baseline.
    """
    *before, last = training_flops(recipe)
    name, stage = list(recipe.stages().items())[-1]
    steps = round(stage.steps * (sum(training_flops(baseline)) - sum(before)) / last)
    if steps < 1:
        raise UserError(
            f"The stages of {recipe.name} before {name} already cost more than the baseline; "
            "reduce their steps."
        )
    return recipe.model_copy(update={name: stage.model_copy(update={"steps": steps})})


def training_flops(recipe: Recipe) -> list[float]:
    """Return the training cost of each stage in GFLOPs."""
    # the cost does not depend on the seed, so the seeds of a variant are counted only once
    return list(_operations(recipe.model_copy(update={"name": "", "output": Path(), "seed": 0})))


@lru_cache
def _operations(recipe: Recipe) -> tuple[float, ...]:
    return tuple(row.samples * row.training_gflops for row in estimate_run(recipe))


def deep_merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with changes: mappings are merged, other values are replaced."""
    result = dict(values)
    for name, change in changes.items():
        before = result.get(name)
        if isinstance(before, Mapping) and isinstance(change, Mapping):
            result[name] = deep_merge(before, change)
        else:
            result[name] = change
    return result


def _recipe_of(
    ablations: Ablations, values: Mapping[str, Any], name: str, variant: str, seed: int
) -> Recipe:
    experiment = ablations.experiments[name]
    recipe = _plain_recipe(ablations, values, name, variant, seed)
    if experiment.budget == "updates" or variant == experiment.baseline:
        return recipe
    first, second = ablations.resolve_alias(name, experiment.baseline)
    return match_compute(recipe, _plain_recipe(ablations, values, first, second, seed))


def _plain_recipe(
    ablations: Ablations, values: Mapping[str, Any], name: str, variant: str, seed: int
) -> Recipe:
    experiment = ablations.experiments[name]
    for changes in (ablations.common, experiment.common, experiment.variants[variant].changes):
        values = deep_merge(values, changes)
    own = {
        "name": f"{ablations.name}-{name}-{variant}",
        "output": ablations.output / name / variant / str(seed),
        "seed": seed,
    }
    return parse_recipe({**values, **own}, f"{ablations.recipe} as {name}.{variant} changes it")


def shared_base_recipe(recipe: Recipe, folder: Path) -> Recipe | None:
    """Return the recipe of the stages that a run shares with others, or None if there are none.

    The name of its folder is a hash of all settings on which their outputs depend. Settings of the
    temporal layers are excluded, so variants that differ only in those share the image network.
    """
    stages = [stage for stage in recipe.stages() if stage in _FRAME_STAGES]
    if not stages:
        return None
    changes: dict[str, Any] = {name: None for name in get_args(StageName) if name not in stages}
    changes["unet"] = recipe.unet.model_copy(
        update={"temporal_attention": "none", "frame_adaptor": False, "convolutions": "2d"}
    )
    base = recipe.model_copy(update={**changes, "name": _SHARED, "output": folder})
    key = hashlib.sha256(base.model_dump_json().encode()).hexdigest()[:12]
    return base.model_copy(update={"name": f"{_SHARED}/{key}", "output": folder / key})


def _copy_output(output: Path, target: Path) -> None:
    if target.is_dir():
        return
    with atomic_folder(target) as partial:
        shutil.copytree(output, partial, dirs_exist_ok=True)


def _check_settings(recipe: Recipe) -> None:
    """Refuse to continue a run that was started with other settings."""
    path = recipe.output / RECIPE_FILE
    if not path.is_file():
        return
    try:
        same = Recipe.model_validate(json.loads(path.read_text(encoding="utf-8"))) == recipe
    except (ValidationError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"{recipe.output} was trained with settings other than the current ones; move the "
            "folder away, or set another output for the ablations."
        )

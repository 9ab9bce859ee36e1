"""Training a recipe: stages in order, each using the outputs of earlier ones."""

import difflib
import json
import time
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from pydantic_core import to_jsonable_python

from magicvideo.atomic_io import atomic_file, lock_output, remove_partial
from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.rng import StackedGenerator
from magicvideo.training.components import OUTPUT, STAGE_FILE
from magicvideo.training.distributed import init_distributed
from magicvideo.training.loader import HELD_OUT, AnyDataset
from magicvideo.training.metrics_logger import check_tracker
from magicvideo.training.progress import Reporter, SilentReporter
from magicvideo.training.recipe import Precision, Recipe, StageConfig, StageName
from magicvideo.training.resolve import DenoiserPlan, StagePlan, plan_stages
from magicvideo.training.stages import assemble_task, open_batches
from magicvideo.training.tasks.clip_model import caption_words, read_words
from magicvideo.training.trainer import Interrupted, Task, Trainer

RECIPE_FILE = "recipe.json"
_EMULATED = 5.0  # slowdown of bfloat16; with hardware support it is not slower than float32
# settings that affect how a stage runs, not its result
_RUN_SETTINGS = frozenset(
    {
        "steps",
        "log_every",
        "preview_every",
        "checkpoint_minutes",
        "keep_checkpoints",
        "gradient_checkpointing",
        "compile",
        "ema_device",
        "mixed_precision",
    }
)
_TIMED_UPDATES = 3
_SHOWN_WORDS = 12


def train(recipe: Recipe, only: StageName | None = None, reporter: Reporter | None = None) -> None:
    """Train all stages of a recipe in order, or one of them. Finished stages are skipped.

    Args:
        recipe: The recipe. It is also written to the run's folder.
        only: The only stage to train; None for all stages.
        reporter: Receives progress and messages; None for no output.

    Raises:
        UserError: If another process trains into the same folder, an earlier stage has no output
            yet, its data cannot be read, the launch options are not supported, or a finished
            stage was trained with other settings or data.
        Interrupted: If a signal stopped the run; the last message says how to resume.
    """
    launch = init_distributed()
    if reporter is None or not launch.is_main_process:
        reporter = SilentReporter()
    check_tracker(recipe.tracker)
    if recipe.init_from is not None and not (recipe.init_from / "model_index.json").is_file():
        raise UserError(
            f"init_from={recipe.init_from} is not a model folder: it has no model_index.json."
        )
    plans = plan_stages(recipe, only)
    with ExitStack() as stack:
        if launch.is_main_process:
            recipe.output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_output(recipe.output.absolute()))
            for folder in (
                recipe.output,
                *recipe.output.glob("*"),
                *recipe.output.glob("*/samples"),
            ):
                remove_partial(folder)
        launch.wait_for_everyone()
        _train_plans(recipe, plans, launch, reporter)


def _train_plans(
    recipe: Recipe, plans: list[StagePlan], launch: PartialState, reporter: Reporter
) -> None:
    waiting = []
    for plan in plans:
        done = _check_output(plan)
        if done >= plan.config.steps:
            reporter.say(f"{plan.name}: already finished, {plan.folder / OUTPUT}")
        else:
            waiting.append(plan)
    if not waiting:
        return
    if launch.is_main_process:
        with atomic_file(recipe.output / RECIPE_FILE) as partial:
            partial.write_text(json.dumps(_dump(recipe), indent=1), encoding="utf-8")
    with reporter:
        _describe_run(recipe, waiting, reporter)
        reporter.start_run({plan.name: (0, plan.config.steps) for plan in waiting})
        try:
            for plan in waiting:
                is_main = launch.is_main_process
                _train_stage(recipe, plan, launch.device, reporter, is_main=is_main)
        except Interrupted as stopped:
            reporter.say(f"{stopped}; run the same command to resume.")
            raise


def _train_stage(
    recipe: Recipe, plan: StagePlan, device: torch.device, reporter: Reporter, *, is_main: bool
) -> None:
    batches = open_batches(plan)
    task = assemble_task(plan, batches, pretrained=True)
    heldout = None
    if plan.config.extra_ema_decays:
        heldout = open_batches(plan, check_encoders=False, splits=HELD_OUT)
    # measured by one process, so that all use the same precision
    choice: list[Precision | None] = [
        choose_precision(plan, task, device, reporter) if is_main else None
    ]
    broadcast_object_list(choice)
    precision = choice[0]
    assert precision is not None
    trainer = Trainer(
        plan.name,
        plan.config,
        plan.folder,
        plan.seed,
        reporter,
        precision,
        recipe.loader,
        recipe.tracker,
        about=_provenance(plan, batches.dataset),
        heldout=heldout,
    )
    trainer.train(task)


# --- settings and data of finished stages ---


def _dump(recipe: Recipe) -> dict[str, Any]:
    """Serialize a recipe as JSON; of its `defaults`, only the given ones."""
    values = recipe.model_dump(mode="json")
    values["defaults"] = recipe.defaults.model_dump(mode="json", exclude_unset=True)
    return values


def _provenance(plan: StagePlan, dataset: AnyDataset) -> dict[str, Any]:
    """Return the settings and data of a stage, as recorded in its output."""
    settings = plan.config.model_dump(mode="json")
    return {
        "settings": {k: v for k, v in settings.items() if k not in _RUN_SETTINGS},
        "seed": plan.seed,
        "data": fingerprint(dataset),
    }


def fingerprint(dataset: AnyDataset) -> dict[str, Any]:
    """Return a fingerprint of training data: number of clips and hash of their description."""
    if isinstance(dataset, ClipDataset):
        described = "\n".join(clip.model_dump_json() for clip in dataset.clips)
    else:
        described = dataset.info.model_dump_json()
    return {"clips": len(dataset), "sha256": sha256(described.encode()).hexdigest()}


def _check_output(plan: StagePlan) -> int:
    """Return the number of updates of a stage's output; 0 without output.

    Raises:
        UserError: If it is damaged, or was trained with other settings or data.
    """
    file = plan.folder / OUTPUT / STAGE_FILE
    if not file.is_file():
        return 0
    trainer = Trainer(plan.name, plan.config, plan.folder, plan.seed, SilentReporter())
    trainer.is_done()  # verifies checksums
    about = json.loads(file.read_text(encoding="utf-8"))
    changes = _changes(about, plan)
    if changes:
        raise UserError(
            f"Stage {plan.name} in {plan.folder} is finished, but was trained with other settings: "
            f"{'; '.join(changes)}. Use another output, such as --set "
            f"output={plan.folder.parent}-2, or remove {plan.folder} to train it again."
        )
    return int(about["steps"])


def _changes(about: dict[str, Any], plan: StagePlan) -> list[str]:
    """Return the differences between an output's settings and data and those of a plan."""
    if "settings" not in about:
        return []
    now = plan.config.model_dump(mode="json")
    # a setting added after the output was written had its default value
    fields = type(plan.config).model_fields
    defaults = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in fields.items()
        if not field.is_required()
    }
    before = {**defaults, **about["settings"]}
    names = [name for name in now if name not in _RUN_SETTINGS]
    changes = [
        f"{plan.name}.{name} was {before.get(name)} and is {now[name]}"
        for name in names
        if before.get(name) != now[name]
    ]
    if about.get("seed", plan.seed) != plan.seed:
        changes.append(f"seed was {about['seed']} and is {plan.seed}")
    try:
        data = fingerprint(open_batches(plan).dataset)
    except UserError:  # the data may have been deleted; a finished stage does not need them
        return changes
    if about["data"] != data:
        before, now = about["data"]["clips"], data["clips"]
        counts = f" (they were {before:,} clips and are {now:,})" if before != now else ""
        changes.append(f"the clips in {plan.data.location} are others than before{counts}")
    return changes


# --- messages before training ---


def _describe_run(recipe: Recipe, plans: list[StagePlan], reporter: Reporter) -> None:
    """Report the data of each stage, and caption words unknown to the text encoder."""
    counted: dict[tuple[Any, bool], int] = {}
    for plan in plans:
        data = (plan.data.location, plan.name == "clip")  # that stage skips clips without text
        if data not in counted:
            counted[data] = len(open_batches(plan, check_encoders=False).dataset)
        reporter.say(f"{plan.name}: {describe_updates(plan.config, counted[data])}")
    lost = unknown_words(recipe, plans)
    if lost:
        shown = ", ".join(lost[:_SHOWN_WORDS]) + (", …" if len(lost) > _SHOWN_WORDS else "")
        reporter.say(
            f"{len(lost)} words of the captions are unknown to the text encoder of "
            f"{recipe.init_from}, and have no effect: {shown}. Add a stage clip, or set "
            "keyframes.text_encoder_learning_rate, to train the text encoder too."
        )


def describe_updates(config: StageConfig, clips: int) -> str:
    """Describe the clips, updates and epochs of a stage."""
    samples = config.batch_size * config.gradient_accumulation_steps
    passes = config.steps * samples / clips
    return f"{clips:,} clips, {config.steps:,} updates of {samples} samples, {passes:,.3g} epochs"


def unknown_words(recipe: Recipe, plans: list[StagePlan]) -> list[str]:
    """Return the words of the training captions unknown to a frozen text encoder."""
    trained = any(isinstance(plan, DenoiserPlan) and plan.trains_text_encoder for plan in plans)
    if recipe.init_from is None or recipe.clip is not None or trained:
        return []
    known = read_words(recipe.init_from)
    captioned = [plan for plan in plans if plan.name in ("image", "keyframes")]
    if not known or not captioned or captioned[0].data.is_sharded:
        return []
    dataset = open_batches(captioned[0]).dataset
    assert isinstance(dataset, ClipDataset)
    return sorted(caption_words(dataset) - known)


# --- precision ---


def choose_precision(
    plan: StagePlan, task: Task, device: torch.device, reporter: Reporter
) -> Precision:
    """Choose the precision of a stage's forward pass, if it is `auto`.

    A resumed stage keeps its precision.
    """
    setting = plan.config.mixed_precision
    if setting != "auto":
        slow = device.type == "cpu" and setting == "bf16" and bf16_slowdown() > _EMULATED
        if slow:
            reporter.say(
                f"{plan.name}: this CPU has no bfloat16 instructions, so training is many times "
                f"slower; --set {plan.name}.mixed_precision=no is faster"
            )
        return setting
    chosen = plan.folder / "precision.json"
    if chosen.is_file():
        kept: Precision = json.loads(chosen.read_text(encoding="utf-8"))["mixed_precision"]
        return kept
    precision: Precision = "no"
    if device.type == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    elif device.type == "cpu" and bf16_slowdown() < 1:
        single, half = (seconds_per_update(plan, task, device, p) for p in ("no", "bf16"))
        precision = "bf16" if half < single else "no"
        reporter.say(
            f"{plan.name}: an update takes {single:.2f} s in float32 and {half:.2f} s in bfloat16; "
            f"mixed_precision={precision}"
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(chosen) as partial:
        partial.write_text(json.dumps({"mixed_precision": precision}), encoding="utf-8")
    return precision


def seconds_per_update(
    plan: StagePlan, task: Task, device: torch.device, precision: Precision
) -> float:
    """Measure the seconds of an update's forward and backward passes on this machine.

    The result is the minimum of several runs after one warm-up run. Weights are not changed.
    """
    network = task.network.to(device)
    batch = task.batches.get_batch(0)
    is_mixed = precision != "no"
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    seconds = []
    for _ in range(1 + _TIMED_UPDATES):
        generator = StackedGenerator([torch.Generator().manual_seed(0)])
        started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=is_mixed):
            loss = task.losses(network, batch, generator)["loss"]
        torch.autograd.backward(loss)
        loss.detach().item()  # synchronizes with the device
        seconds.append(time.perf_counter() - started)
        network.zero_grad(set_to_none=True)
    return min(seconds[1:]) * plan.config.gradient_accumulation_steps


def bf16_slowdown() -> float:
    """Measure the slowdown of a matrix product in bfloat16 compared to float32."""
    single, half = (_seconds_of_matmul(dtype) for dtype in (torch.float32, torch.bfloat16))
    return half / single


def _seconds_of_matmul(dtype: torch.dtype) -> float:
    """Return the minimal time of several runs, to exclude interference."""
    matrix = torch.ones(256, 256, dtype=dtype)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def resolve_stage(recipe: Recipe, name: str | None) -> StageName | None:
    """Check the name of a stage; None for all stages.

    Raises:
        UserError: If the recipe lacks it. The message suggests the most similar stage.
    """
    stages = recipe.stages()
    if name is None:
        return None
    for known in stages:
        if known == name:
            return known
    near = difflib.get_close_matches(name, stages, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(stages)}."
    raise UserError(f"The recipe {recipe.name} has no stage {name!r}; {hint}")


def read_run_recipe(run: Path) -> Recipe:
    """Read the recipe of a run.

    Raises:
        UserError: If the folder is not a run.
    """
    file = run / RECIPE_FILE
    if not file.is_file():
        raise UserError(f"{run} is not a training run: {file} does not exist.")
    values = json.loads(file.read_text(encoding="utf-8"))
    # the run may have been moved
    return Recipe.model_validate({**values, "output": run})

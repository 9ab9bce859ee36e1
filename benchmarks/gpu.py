"""Measure the paper's scale on one GPU: the U-Nets, training of every stage, and one video.

    python -m benchmarks.gpu FOLDER --output gpu.md

The model is Stable Diffusion 1.5 in form and size with random weights, and the clips are made, so
that costs are all that is learned here. README.md in this folder says how to read the numbers.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks.cascade import Machine, Precision, report
from benchmarks.stable_diffusion import IMAGE, make
from benchmarks.unet import Work, built, forward, forward_backward
from magicvideo.atomic_io import atomic_file
from magicvideo.convert.stable_diffusion import inflate_stable_diffusion
from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources import folder as clip_folder
from magicvideo.data.sources.synthetic import write_clips
from magicvideo.training.dry_run import StageEstimate, estimate_run
from magicvideo.training.export import export
from magicvideo.training.progress import LineReporter
from magicvideo.training.recipe import Recipe, StageConfig, StageName, read_recipe
from magicvideo.training.run import train
from magicvideo.training.trainer import CHECKPOINTS
from studies.cost.networks import FLOOR, NETWORKS, PAPER, make_inputs
from studies.cost.page import table

RECIPE = Path(__file__).parents[1] / "recipes" / "paper.yaml"
RUN, MODEL = "run", "model"
SMALL, LARGE, CLIPS, WARM_UP = 256, 1024, 8, 2
_GIB = 2**30
_WORKS: dict[str, Work] = {"forward": forward, "forward and backward": forward_backward}


@dataclass(frozen=True)
class Pass:
    """The passes of one kind through a network: milliseconds of each round, and peak bytes."""

    milliseconds: list[float]
    peak: int


def measure_pass(name: str, work: Work, rounds: int, dtype: torch.dtype) -> Pass:
    """Run one network with the channels of Stable Diffusion on a clip, with float32 weights.

    Args:
        name: Name of the network.
        work: The function to run.
        rounds: Number of measured passes, after one warm-up pass.
        dtype: Dtype of autocast.
    """
    network = NETWORKS[name]
    given = make_inputs(PAPER, "cuda")
    with built(network, PAPER, torch.contiguous_format, "cuda") as module:
        torch.cuda.reset_peak_memory_stats()
        milliseconds = []
        for _ in range(1 + rounds):
            start, end = _event(), _event()
            start.record()
            with torch.autocast("cuda", dtype):
                work(network, module, given)
            end.record()
            torch.cuda.synchronize()
            milliseconds.append(start.elapsed_time(end))
        return Pass(milliseconds[1:], torch.cuda.max_memory_allocated())


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def networks_section(rounds: int) -> str:
    """Return the table of all networks, with ratios to the image network in the same run."""
    rows = []
    for label, work in _WORKS.items():
        taken = {name: measure_pass(name, work, rounds, torch.bfloat16) for name in NETWORKS}
        floor = median(taken[FLOOR].milliseconds)
        for name, run in taken.items():
            middle = median(run.milliseconds)
            numbers = (f"{middle:.1f}", f"{middle / floor:.3f}", f"{run.peak / _GIB:.1f}")
            rows.append([label, name, *numbers])
    head = ["pass", "network", "milliseconds", "ratio", "GiB at peak"]
    return (
        "## The U-Nets\n\nOne pass over a clip of 16 frames, 32x32 latents and 77 tokens, in "
        f"bfloat16 autocast with float32 weights; the median of {rounds}.\n\n"
        f"{table(head, rows)}"
    )


@dataclass(frozen=True)
class Update:
    """The measured cost of an update of one stage, and the memory that the dry run estimates."""

    stage: str
    samples: int
    seconds: float
    peak: int
    planned: int
    gflops: float


def prepare_all(folder: Path) -> Recipe:
    """Create the initial model and the clips if they do not exist, and return the recipe.

    Earlier training is removed, because a finished stage would be skipped.
    """
    for trained in (RUN, MODEL):
        shutil.rmtree(folder / trained, ignore_errors=True)
    if not (folder / "start").exists():
        make(folder)
        inflate_stable_diffusion(folder / IMAGE, folder / "start", num_frames=16, size=SMALL)
        shutil.rmtree(folder / IMAGE)
    if not (folder / "clips").exists():
        (folder / "clips").mkdir()
        write_clips(folder / "clips", CLIPS)
    source = clip_folder.scan(folder / "clips")
    for size in (SMALL, LARGE):
        step = 1 if size == SMALL else 10
        prepare(source, folder / f"clips{size}", FrameSettings.square(size, step=step))
    places = {
        "data": folder / f"clips{SMALL}",
        "output": folder / RUN,
        "init_from": folder / "start",
        "upscaler.data": folder / f"clips{LARGE}",
    }
    return read_recipe(RECIPE, [f"{name}={place}" for name, place in places.items()])


def with_updates(recipe: Recipe, updates: int) -> Recipe:
    """Return the recipe with `updates` steps in every stage, no previews and one checkpoint."""
    few = {"steps": updates, "preview_every": updates + 1, "keep_checkpoints": 1}
    stages: dict[str, StageConfig] = {
        name: stage.model_copy(update=few) for name, stage in recipe.stages().items()
    }
    return recipe.model_copy(update=stages)


def _write_line(line: str) -> None:
    print(line)


def train_stage(recipe: Recipe, name: StageName, planned: StageEstimate) -> Update:
    """Train one stage in this new process."""
    settings = recipe.stages()[name]
    train(recipe, name, LineReporter(_write_line))
    lines = (recipe.output / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines[WARM_UP:]]
    shutil.rmtree(recipe.output / name / CHECKPOINTS)  # 15 GB for each denoiser
    samples = settings.batch_size * settings.gradient_accumulation_steps
    gflops = samples * planned.training_gflops
    peak = torch.cuda.max_memory_allocated()
    return Update(name, samples, median(seconds), peak, planned.memory.total, gflops)


def train_all(recipe: Recipe) -> Iterator[Update]:
    """Train every stage in order, each in a new process."""
    for name, planned in zip(recipe.stages(), estimate_run(recipe), strict=True):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            yield fresh.submit(train_stage, recipe, name, planned).result()


def training_section(recipe: Recipe, updates: int) -> str:
    """Return the table of all stages."""
    rows = []
    for update in train_all(recipe):
        stage, samples, seconds, peak, planned, gflops = astuple(update)
        rate = gflops / 1e3 / seconds
        numbers = (f"{seconds:.2f}", f"{rate:.0f}", f"{peak / _GIB:.1f}", f"{planned / _GIB:.1f}")
        rows.append([stage, str(samples), *numbers])
        print(rows[-1], flush=True)
    head = ["stage", "samples per update", "seconds", "TFLOP/s", "peak GiB", "estimated GiB"]
    return (
        f"## Training\n\n`recipes/paper.yaml`, {updates} updates of every stage, of which the "
        f"first {WARM_UP} are warm-up; seconds are the median, and clips are read in the training "
        "process. *TFLOP/s*: the FLOPs that `--dry-run` counts, divided by the seconds. "
        f"*Estimated*: the memory that `--dry-run` prints.\n\n{table(head, rows)}"
    )


def video_section(recipe: Recipe, folder: Path, precision: Precision) -> str:
    """Return the section on the cost of one video of 61 frames of 1024x1024."""
    export(recipe.output, folder / MODEL, "fp16")
    costs = report(folder / MODEL, Machine("cuda", precision), rounds=1)
    return f"## One video\n\nAll stages with the defaults of the recipe; {costs}"


def main(
    folder: Annotated[
        Path, typer.Argument(help="Folder for models, clips and runs; 60 GB of disk.")
    ],
    updates: Annotated[int, typer.Option(min=WARM_UP + 1, help="Updates per stage.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="Measured passes per U-Net.")] = 10,
    precision: Annotated[
        Precision, typer.Option(help="Dtype of the networks for the video.")
    ] = Precision.FLOAT16,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Measure the paper's scale on one GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = with_updates(prepare_all(folder), updates)
    sections = [
        "# The paper's scale on one GPU\n\n"
        "Written by `python -m benchmarks.gpu`; `benchmarks/README.md` describes the method. "
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}. Weights are random, with "
        "the form and size of Stable Diffusion 1.5, so only seconds and memory are meaningful."
    ]
    parts: list[Callable[[], str]] = [
        partial(networks_section, rounds),
        partial(training_section, recipe, updates),
        partial(video_section, recipe, folder, precision),
    ]
    for section in parts:
        sections.append(section())
        print(sections[-1], flush=True)
        if output is not None:
            with atomic_file(output) as file:
                file.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

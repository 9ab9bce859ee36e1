"""What each stage of one video costs: seconds of the processor and of the clock, and memory.

    python -m benchmarks.cascade --model models/emoji --output docs/cascade.md
    python -m benchmarks.cascade --device cuda --precision float16

Every stage runs in a fresh process, on what the stage before it left in a file, so that its peak is
its own. README.md in this folder says how to read the numbers.
"""

import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from enum import Enum
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, TypeAlias

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicvideo.atomic_io import atomic_file
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

_PROMPT = "woman surfing, medium skin tone, sky blue background"
_SEED = 1
_STATUS = Path("/proc/self/status")

Stage: TypeAlias = Callable[[MagicVideoPipeline, Request, Tensor], Tensor]


def key_frames(pipeline: MagicVideoPipeline, request: Request, _: Tensor) -> Tensor:
    """Encode the prompt and make the key latents."""
    return pipeline.sample_keyframes(request, *pipeline.encode_condition(request))


def interpolation(pipeline: MagicVideoPipeline, request: Request, keys: Tensor) -> Tensor:
    """Encode the prompt again and make the latents between the keys."""
    return pipeline.interpolate(request, keys, pipeline.encode_condition(request)[0])


def decoding(pipeline: MagicVideoPipeline, _: Request, latents: Tensor) -> Tensor:
    """Decode the latents of all frames."""
    return pipeline.decode(latents)


def super_resolution(pipeline: MagicVideoPipeline, request: Request, frames: Tensor) -> Tensor:
    """Enlarge all frames."""
    return pipeline.upscale(request, frames)


STAGES: dict[str, Stage] = {
    "key frames": key_frames,
    "interpolation": interpolation,
    "decoding": decoding,
    "super-resolution": super_resolution,
}
_OPTIONAL = {"interpolation": "interpolation", "super-resolution": "upscaler"}


class Precision(str, Enum):
    """Numbers that the networks compute in, by torch's names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Machine:
    """What the stages run on.

    Attributes:
        device: As torch names it, such as `cpu` or `cuda`.
        precision: Of weights and activations.
        threads: Of torch.
    """

    device: str = "cpu"
    precision: Precision = Precision.FLOAT32
    threads: int = 1

    @property
    def on_gpu(self) -> bool:
        """Return whether memory and time are those of a GPU."""
        return self.device.startswith("cuda")

    @property
    def label(self) -> str:
        """Return what a report calls it."""
        if self.on_gpu:
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision.value}"
        processor = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
        plural = "s" if self.threads > 1 else ""
        return f"{self.threads} thread{plural} of {processor}, {self.precision.value}"

    def load(self, model: Path | None) -> MagicVideoPipeline:
        """Return a whole model; None is the one that is shipped."""
        dtype = getattr(torch, self.precision.value)
        return MagicVideoPipeline.from_pretrained(model, torch_dtype=dtype).to(self.device)

    def wait(self) -> None:
        """Return when the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """Return the most bytes that this process has held so far, on the GPU if it runs there."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else peak_on_cpu()


@dataclass(frozen=True)
class Cost:
    """What one stage costs: the least seconds of all rounds, memory in bytes, and what it made."""

    processor: float
    clock: float
    loaded: int
    peak: int
    made: tuple[int, ...]


@torch.no_grad()
def measure(name: str, model: Path | None, given: Path, machine: Machine, rounds: int) -> Cost:
    """Run a stage in this process, which has done nothing else, and write what it makes.

    Args:
        name: The stage.
        model: A model folder, or None for the shipped one.
        given: A safetensors file with what the stage before made; replaced.
        machine: What to run on.
        rounds: How many times the stage runs; on a GPU once more, to begin with.
    """
    torch.set_num_threads(machine.threads)
    pipeline = machine.load(model)
    request = pipeline.build_requests([_PROMPT], [_SEED], GenerationSettings())[0]
    tensor = load_file(given, device=machine.device)["tensor"] if given.exists() else torch.empty(0)
    loaded = machine.peak_memory()
    taken = []
    for _ in range(rounds + machine.on_gpu):
        processor, clock = time.process_time(), time.perf_counter()
        made = STAGES[name](pipeline, request, tensor)
        machine.wait()
        taken.append((time.process_time() - processor, time.perf_counter() - clock))
    peak = machine.peak_memory()
    save_file({"tensor": made.contiguous()}, given)
    processor, clock = (min(column) for column in zip(*taken, strict=True))
    return Cost(processor, clock, loaded, peak, tuple(made.shape[1:]))


def peak_on_cpu() -> int:
    """Return the most bytes that this process has held so far."""
    if _STATUS.exists():
        # what `getrusage` tells begins at the size of the process that started this one
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        return next(1024 * int(words[1]) for words in lines if words[0] == "VmHWM:")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def measure_all(
    model: Path | None, present: tuple[str, ...], machine: Machine, rounds: int
) -> Iterator[tuple[str, Cost]]:
    """Yield each stage that the model has, by its `present` ones, with its cost."""
    with TemporaryDirectory() as folder:
        given = Path(folder) / "tensor.safetensors"
        for name in STAGES:
            if name in _OPTIONAL and _OPTIONAL[name] not in present:
                continue
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                yield name, fresh.submit(measure, name, model, given, machine, rounds).result()


def report(model: Path | None, machine: Machine, rounds: int) -> str:
    """Return what ran and the costs of all stages, as Markdown without a title."""
    pipeline = MagicVideoPipeline.from_pretrained(model, offload_device="cpu")
    request = pipeline.build_requests([_PROMPT], [_SEED], GenerationSettings())[0]
    lines = [
        f"torch {torch.__version__}, {machine.label}, {rounds} rounds of which the least counts, "
        f"model {pipeline.model_hash}. Steps: "
        f"{request.num_inference_steps} of key frames, {request.interpolation_steps} of "
        f"interpolation, {request.upscaler_steps} of super-resolution.",
        "",
        "| stage | makes | CPU seconds | seconds | MiB loaded | MiB at peak |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    total = [0.0, 0.0]
    for name, cost in measure_all(model, request.stages, machine, rounds):
        made = "x".join(map(str, cost.made))
        memory = (f"{size / 2**20:.0f}" for size in (cost.loaded, cost.peak))
        seconds = (cost.processor, cost.clock)
        total = [a + b for a, b in zip(total, seconds, strict=True)]
        cells = (name, made, *(f"{value:.2f}" for value in seconds), *memory)
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| all | | {total[0]:.2f} | {total[1]:.2f} | | |")
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[
        Path | None, typer.Option(help="A model folder; by default the model that is shipped.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[Precision, typer.Option(help="Of all networks.")] = Precision.FLOAT32,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often each stage runs.")] = 2,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Measure what each stage of one video costs."""
    text = (
        "# Cost of one video\n\n"
        "Written by `python -m benchmarks.cascade`; `benchmarks/README.md` says how it measures. "
        + report(model, Machine(device, precision, threads), rounds)
    )
    print(text)
    if output is not None:
        with atomic_file(output) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

"""Measure CPU time, wall time and memory of each stage of one video.

    python -m benchmarks.cascade --model models/emoji --output docs/cascade.md
    python -m benchmarks.cascade --device cuda --precision float16

Every stage runs in a new process and reads the output of the previous stage from a file, so its
peak memory does not include other stages. README.md in this folder explains the numbers.
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

from benchmarks.page import publish
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

_PROMPT = "woman surfing, medium skin tone, sky blue background"
_SEED = 1
_STATUS = Path("/proc/self/status")

Stage: TypeAlias = Callable[[MagicVideoPipeline, Request, Tensor], Tensor]


def key_frames(pipeline: MagicVideoPipeline, request: Request, _: Tensor) -> Tensor:
    """Encode the prompt and sample the latents of the key frames."""
    return pipeline.sample_keyframes(request, *pipeline.encode_condition(request))


def interpolation(pipeline: MagicVideoPipeline, request: Request, keys: Tensor) -> Tensor:
    """Encode the prompt and sample the latents between the key frames."""
    return pipeline.interpolate(request, keys, pipeline.encode_condition(request)[0])


def decoding(pipeline: MagicVideoPipeline, _: Request, latents: Tensor) -> Tensor:
    """Decode the latents of all frames."""
    return pipeline.decode(latents)


def super_resolution(pipeline: MagicVideoPipeline, request: Request, frames: Tensor) -> Tensor:
    """Upscale all frames."""
    return pipeline.upscale(request, frames)


STAGES: dict[str, Stage] = {
    "key frames": key_frames,
    "interpolation": interpolation,
    "decoding": decoding,
    "super-resolution": super_resolution,
}
_OPTIONAL = {"interpolation": "interpolation", "super-resolution": "upscaler"}


class Precision(str, Enum):
    """Dtypes of the networks."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Machine:
    """The device and its settings.

    Attributes:
        device: A torch device, such as `cpu` or `cuda`.
        precision: Dtype of weights and activations.
        threads: Number of torch threads.
    """

    device: str = "cpu"
    precision: Precision = Precision.FLOAT32
    threads: int = 1

    @property
    def on_gpu(self) -> bool:
        """Return whether the device is a GPU."""
        return self.device.startswith("cuda")

    @property
    def label(self) -> str:
        """Return its label in the report."""
        if self.on_gpu:
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision.value}"
        processor = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
        plural = "s" if self.threads > 1 else ""
        return f"{self.threads} thread{plural} of {processor}, {self.precision.value}"

    def load(self, model: Path | None) -> MagicVideoPipeline:
        """Return a complete model; None is the bundled model."""
        dtype = getattr(torch, self.precision.value)
        return MagicVideoPipeline.from_pretrained(model, torch_dtype=dtype).to(self.device)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """Return the peak memory of this process in bytes, on the GPU if it uses one."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else peak_on_cpu()


@dataclass(frozen=True)
class Cost:
    """The cost of one stage: minimum seconds over the rounds, bytes, and the output shape."""

    processor: float
    clock: float
    loaded: int
    peak: int
    made: tuple[int, ...]


@torch.no_grad()
def measure(name: str, model: Path | None, given: Path, machine: Machine, rounds: int) -> Cost:
    """Run a stage in this new process and write its output.

    Args:
        name: The stage.
        model: A model folder, or None for the bundled model.
        given: A safetensors file with the output of the previous stage, which is replaced.
        machine: The device.
        rounds: Number of runs; on a GPU there is one more run as warm-up.
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
    """Return the peak resident set of this process in bytes."""
    if _STATUS.exists():
        # the value of `getrusage` starts at the size of the parent process
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        return next(1024 * int(words[1]) for words in lines if words[0] == "VmHWM:")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def measure_all(
    model: Path | None, present: tuple[str, ...], machine: Machine, rounds: int
) -> Iterator[tuple[str, Cost]]:
    """Yield each stage of the model with its cost; `present` lists the optional stages."""
    with TemporaryDirectory() as folder:
        given = Path(folder) / "tensor.safetensors"
        for name in STAGES:
            if name in _OPTIONAL and _OPTIONAL[name] not in present:
                continue
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                yield name, fresh.submit(measure, name, model, given, machine, rounds).result()


def report(model: Path | None, machine: Machine, rounds: int) -> str:
    """Return the costs of all stages as Markdown without a title."""
    pipeline = MagicVideoPipeline.from_pretrained(model, offload_device="cpu")
    request = pipeline.build_requests([_PROMPT], [_SEED], GenerationSettings())[0]
    lines = [
        f"torch {torch.__version__}, {machine.label}, minimum over {rounds} rounds, "
        f"model {pipeline.model_hash}. Diffusion steps: "
        f"{request.num_inference_steps} for key frames, {request.interpolation_steps} for "
        f"interpolation, {request.upscaler_steps} for super-resolution.",
        "",
        "| stage | output | CPU seconds | wall seconds | MiB after loading | MiB at peak |",
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
        Path | None, typer.Option(help="A model folder; by default the bundled model.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[
        Precision, typer.Option(help="Dtype of all networks.")
    ] = Precision.FLOAT32,
    threads: Annotated[int, typer.Option(min=1, help="Number of torch threads.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Number of runs of each stage.")] = 2,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Measure the cost of each stage of one video."""
    text = (
        "# Cost of one video\n\n"
        "Written by `python -m benchmarks.cascade`; `benchmarks/README.md` describes the method. "
        + report(model, Machine(device, precision, threads), rounds)
    )
    publish(text, output)


if __name__ == "__main__":
    typer.run(main)

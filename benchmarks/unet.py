"""Compare the cost of the video U-Net with the image U-Net it starts from and with other networks.

    python -m benchmarks.unet --time emoji --output docs/benchmarks.md

One process, one thread, interleaved repetitions. The image network is diffusers'
`UNet2DConditionModel` with the frames of all videos as its batch; the other video networks are
diffusers' `UNetMotionModel` (AnimateDiff) and `UNet3DConditionModel` (ModelScope). README.md in
this folder explains the numbers.
"""

import gc
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Annotated, TypeAlias

import diffusers
import torch
import typer
from torch import nn

from benchmarks.networks import SIZES, Size, Width
from benchmarks.page import publish
from studies.cost.networks import (
    FLOOR,
    NETWORKS,
    Inputs,
    Network,
    Workload,
    make_inputs,
)
from studies.cost.page import networks_table, table

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


Work: TypeAlias = Callable[[Network, nn.Module, Inputs], None]


def forward(network: Network, module: nn.Module, given: Inputs) -> None:
    """Run the forward pass, as in a step of generation."""
    with torch.no_grad():
        network.call(module, given)


def forward_backward(network: Network, module: nn.Module, given: Inputs) -> None:
    """Run the forward and backward pass, as in a training step without the optimizer."""
    torch.autograd.backward(network.call(module, given).square().mean())
    module.zero_grad(set_to_none=True)


@contextmanager
def built(
    network: Network, work: Workload, memory_format: torch.memory_format, device: str = "cpu"
) -> Iterator[nn.Module]:
    """Yield a network with small random weights, and free its memory afterwards."""
    with torch.device("meta"):
        module = network.build(work)
    module = module.to_empty(device=device).train()
    with torch.no_grad():
        for tensor in chain(module.parameters(), module.buffers()):
            tensor.uniform_(-0.03, 0.03)
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=memory_format)
    yield module
    del module
    gc.collect()


Seconds: TypeAlias = dict[str, dict[str, list[float]]]


def measure(work: Work, size: Size) -> Seconds:
    """Return CPU seconds by network and memory format, one value per round."""
    given = make_inputs(replace(size.work, frames=size.timed_frames), "cpu")
    seconds: Seconds = {name: {order: [] for order in FORMATS} for name in NETWORKS}
    for _ in range(size.rounds):
        for name, network in NETWORKS.items():
            for order, memory_format in FORMATS.items():
                with built(network, size.work, memory_format) as module:
                    if size.backward:
                        work(network, module, given)
                    started = time.process_time()
                    work(network, module, given)
                    seconds[name][order].append(time.process_time() - started)
    return seconds


def seconds_table(seconds: Seconds) -> str:
    """Return the seconds of each network in its faster memory format, and the ratios."""
    best = {name: min(orders, key=lambda o: min(orders[o])) for name, orders in seconds.items()}
    floor = seconds[FLOOR][best[FLOOR]]
    rows = []
    for name, order in best.items():
        taken = seconds[name][order]
        ratios = min(taken) / min(floor), median(taken) / median(floor)
        numbers = (min(taken), median(taken), *ratios)
        rows.append([name, order, *(f"{number:.3f}" for number in numbers)])
    return table(["network", "memory format", "minimum", "median", "ratio", "of medians"], rows)


def flops_section(size: Size) -> str:
    """Return the counted part of the report."""
    work = size.work
    given = (
        f"{work.videos} x {work.frames} frames of {work.side}x{work.side} latents and "
        f"{work.tokens} tokens of width {work.config['cross_attention_dim']}"
    )
    return f"## At {size.label}\n\nGFLOPs of a forward pass for {given}:\n\n{networks_table(work)}"


def seconds_section(size: Size) -> str:
    """Return the timed part of the report."""
    works = {"a forward pass": forward}
    if size.backward:
        works["a forward and backward pass"] = forward_backward
    return "\n\n".join(
        f"CPU seconds of {name}, {size.work.videos} x {size.timed_frames} frames, "
        f"{size.rounds} rounds:\n\n{seconds_table(measure(work, size))}"
        for name, work in works.items()
    )


def introduction() -> str:
    """Return the head of the report, with versions and the processor."""
    processor = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return (
        "# Cost of the video U-Net\n\n"
        "Written by `python -m benchmarks.unet`; `benchmarks/README.md` describes the method. "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, one thread of {processor}, "
        "float32. Ratios are relative to the image network with all frames as its batch."
    )


def main(
    width: Annotated[
        list[Width] | None, typer.Option("--time", help="Time this size; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Count the cost of the networks at both sizes, and time them at the given sizes."""
    torch.set_num_threads(1)
    sections = [introduction()]
    for key, make in SIZES.items():
        size = make()
        sections.append(flops_section(size))
        if key in (width or []):
            sections.append(seconds_section(size))
    text = "\n\n".join(sections) + "\n"
    publish(text, output)


if __name__ == "__main__":
    typer.run(main)

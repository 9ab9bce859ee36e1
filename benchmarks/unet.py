"""What the video U-Net costs beside the 2D network that it grows from, and beside its peers.

    python -m benchmarks.unet --time emoji --output docs/benchmarks.md

One process, one thread, interleaved repetitions. The floor is diffusers' `UNet2DConditionModel`
with the frames of all videos as its batch; the peers are diffusers' `UNetMotionModel` (AnimateDiff)
and `UNet3DConditionModel` (ModelScope). README.md in this folder says how to read the numbers.
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
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import FLOOR, NETWORKS, SIZES, Inputs, Network, Size, Width, make_inputs
from magicvideo.storage import atomic_file

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def count(network: Network, size: Size) -> tuple[int, dict[str, int]]:
    """Return parameters, and FLOPs of a forward pass by kind of layer; nothing is computed."""
    with torch.device("meta"):
        module = network.build(size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.call(module, make_inputs(size, "meta"))
    # on the meta device attention is two batched products, and linear layers are never batched
    kinds = {"aten.convolution": "convolutions", "aten.bmm": "attention"}
    flops = dict.fromkeys(("convolutions", "linear layers", "attention"), 0)
    for operator, number in counter.get_flop_counts()["Global"].items():
        flops[kinds.get(str(operator), "linear layers")] += number
    return sum(p.numel() for p in module.parameters()), flops


def check_counter() -> None:
    """Stop if the counter misses attention, as it does on the CPU.

    Raises:
        RuntimeError: If a known attention gets another count than 2 FLOPs per multiplication.
    """
    q = torch.empty(1, 12, 64, 64, device="meta")
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(q, q, q)
    if counter.get_total_flops() != 12_582_912:
        raise RuntimeError(f"attention counts {counter.get_total_flops()} FLOPs, not 12582912")


Work: TypeAlias = Callable[[Network, nn.Module, Inputs], None]


def forward(network: Network, module: nn.Module, given: Inputs) -> None:
    """Run what a step of generation runs."""
    with torch.no_grad():
        network.call(module, given)


def forward_backward(network: Network, module: nn.Module, given: Inputs) -> None:
    """Run what a step of training runs, without the optimizer."""
    torch.autograd.backward(network.call(module, given).square().mean())
    module.zero_grad(set_to_none=True)


@contextmanager
def built(network: Network, size: Size, memory_format: torch.memory_format) -> Iterator[nn.Module]:
    """Yield a network with small random weights, and give its memory back."""
    with torch.device("meta"):
        module = network.build(size)
    module = module.to_empty(device="cpu").train()
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
    """Return CPU-seconds by network and memory format, one of each kind a round."""
    given = make_inputs(replace(size, frames=size.timed_frames), "cpu")
    seconds: Seconds = {name: {order: [] for order in FORMATS} for name in NETWORKS}
    for _ in range(size.rounds):
        for name, network in NETWORKS.items():
            for order, memory_format in FORMATS.items():
                with built(network, size, memory_format) as module:
                    if size.backward:
                        work(network, module, given)
                    started = time.process_time()
                    work(network, module, given)
                    seconds[name][order].append(time.process_time() - started)
    return seconds


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def flops_table(size: Size) -> str:
    """Return parameters and FLOPs of all networks, and the ratio to the floor."""
    counts = {name: count(network, size) for name, network in NETWORKS.items()}
    floor = sum(counts[FLOOR][1].values())
    rows = [
        [
            name,
            f"{parameters / 1e6:.2f}",
            *(f"{number / 1e9:,.2f}" for number in (*flops.values(), sum(flops.values()))),
            f"{sum(flops.values()) / floor:.3f}",
        ]
        for name, (parameters, flops) in counts.items()
    ]
    kinds = list(counts[FLOOR][1])
    return table(["network", "parameters (10^6)", *kinds, "GFLOPs", "ratio"], rows)


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
    """Return the part of the report that is counted."""
    given = (
        f"{size.videos} x {size.frames} frames of {size.side}x{size.side} latents and "
        f"{size.tokens} tokens of width {size.config['cross_attention_dim']}"
    )
    return f"## At {size.label}\n\nGFLOPs of a forward pass for {given}:\n\n{flops_table(size)}"


def seconds_section(size: Size) -> str:
    """Return the part of the report that is timed."""
    works = {"a forward pass": forward}
    if size.backward:
        works["a forward and backward pass"] = forward_backward
    return "\n\n".join(
        f"CPU-seconds of {name}, {size.videos} x {size.timed_frames} frames, {size.rounds} rounds:"
        f"\n\n{seconds_table(measure(work, size))}"
        for name, work in works.items()
    )


def introduction() -> str:
    """Return the head of the report: what ran, and on what."""
    processor = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return (
        "# Cost of the video U-Net\n\n"
        "Written by `python -m benchmarks.unet`; `benchmarks/README.md` says how it measures. "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, one thread of {processor}, "
        "float32. The floor, ratio 1, is the image network with all frames as its batch."
    )


def main(
    width: Annotated[
        list[Width] | None, typer.Option("--time", help="Time this width; may be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Count the cost of the networks at both widths, and time them at those that are named."""
    torch.set_num_threads(1)
    check_counter()
    sections = [introduction()]
    for key, make in SIZES.items():
        size = make()
        sections.append(flops_section(size))
        if key in (width or []):
            sections.append(seconds_section(size))
    text = "\n\n".join(sections) + "\n"
    print(text)
    if output is not None:
        with atomic_file(output) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

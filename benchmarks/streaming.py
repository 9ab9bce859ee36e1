"""Measure sampling with given frames, previews, and a stream of frames.

    python -m benchmarks.streaming --output docs/streaming.md

Seconds are CPU time of one thread. A model that was not trained to continue frames has the same
cost, so it can be measured too. README.md in this folder explains the numbers.
"""

import os
import platform
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.cascade import peak_on_cpu
from magicvideo.atomic_io import atomic_file
from magicvideo.diffusion.sampling import GuidedDenoiser, denoising_loop
from magicvideo.evaluation.metrics.motion import change_at_joints
from magicvideo.pipelines.keyframes import WindowDenoiser
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.shapes import Latents, Tokens
from studies.cost.page import table

_PROMPT = "woman surfing, medium skin tone, sky blue background"
_SEED = 1


def seconds_of(work: Callable[[], object], rounds: int) -> float:
    """Return the minimum CPU seconds over the rounds."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


@torch.no_grad()
def sample(
    pipeline: MagicVideoPipeline,
    request: Request,
    tokens: tuple[Tokens, Tokens],
    given: Latents | None,
    num_new: int,
    *,
    use_cache: bool,
) -> Latents:
    """Sample new key frames after given ones, with all diffusion steps."""
    config = pipeline.unet.config
    shape = (1, num_new, config.in_channels, config.sample_size, config.sample_size)
    guided = GuidedDenoiser(
        WindowDenoiser(pipeline.unet, given, use_cache=use_cache),
        *tokens,
        torch.tensor([request.fps]),
        request.guidance_scale,
        request.guidance_stop,
        request.num_inference_steps,
    )
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(_SEED))
    scheduler = pipeline.scheduler_for("keyframes", request)
    return denoising_loop(guided, noise, scheduler, request.num_inference_steps)


def given_section(pipeline: MagicVideoPipeline, request: Request, rounds: int) -> str:
    """Return the section on sampling with given frames, cached and uncached."""
    tokens = pipeline.encode_condition(request)
    frames, side = pipeline.unet.config.num_frames, pipeline.unet.config.sample_size
    shape = (1, frames, pipeline.unet.config.in_channels, side, side)
    clean = torch.randn(shape, generator=torch.Generator().manual_seed(2))

    def cost(num_given: int, num_new: int, *, use_cache: bool) -> float:
        given = clean[:, :num_given] if num_given else None
        return seconds_of(
            lambda: sample(pipeline, request, tokens, given, num_new, use_cache=use_cache), rounds
        )

    whole = cost(0, frames, use_cache=True)
    rows = [["0", str(frames), "", f"{whole:.2f}", "1.00", "1.00"]]
    for num_given in (1, frames // 4, frames // 2):
        new = frames - num_given
        uncached = cost(num_given, new, use_cache=False)
        cached = cost(num_given, new, use_cache=True)
        numbers = (f"{uncached:.2f}", f"{cached:.2f}", f"{cached / whole:.2f}")
        rows.append([str(num_given), str(new), *numbers, f"{new / frames:.2f}"])
    head = [
        "given",
        "new",
        "uncached, s",
        "cached, s",
        "cached, relative to 0 given",
        "fraction of new frames",
    ]
    return (
        f"## Given frames\n\nCPU seconds of the {request.num_inference_steps} diffusion steps of a "
        f"window of {frames} key frames, including the keys and values of the given frames. The "
        "last two columns would be equal if the cost were proportional to the new "
        f"frames.\n\n{table(head, rows)}"
    )


@torch.no_grad()
def preview_section(pipeline: MagicVideoPipeline, request: Request, rounds: int) -> str:
    """Return the section on the cost of a preview relative to a diffusion step."""
    tokens = pipeline.encode_condition(request)
    frames = pipeline.unet.config.num_frames
    one = seconds_of(
        lambda: sample(pipeline, request, tokens, None, frames, use_cache=True), rounds
    )
    step = one / request.num_inference_steps
    latents = sample(pipeline, request, tokens, None, frames, use_cache=True)
    pipeline.preview(latents)  # the first call fits the map if the folder has none
    linear = seconds_of(lambda: [pipeline.preview(latents) for _ in range(100)], rounds) / 100
    decoder = seconds_of(lambda: pipeline.decode(latents), rounds)
    rows = [
        ["one diffusion step", f"{1000 * step:.1f}", "100 %"],
        [
            "preview of all frames with the linear map",
            f"{1000 * linear:.2f}",
            f"{linear / step:.2%}",
        ],
        ["decoding of all frames", f"{1000 * decoder:.1f}", f"{decoder / step:.0%}"],
    ]
    return (
        f"## Previews\n\nFor {frames} key frames:\n\n"
        f"{table(['', 'CPU milliseconds', 'relative to a step'], rows)}"
    )


def stream_section(pipeline: MagicVideoPipeline, seconds: float) -> str:
    """Return the section on speed and memory of a stream, and the change at its joints."""
    model = pipeline.capabilities
    stream = pipeline.stream(_PROMPT, seed=_SEED, output_type="pt")
    rate = float(model.default("fps")) * (model.num_inserted + 1)
    total = round(seconds * rate)
    half = total // 2
    processor, clock = time.process_time(), time.perf_counter()
    small = [frame[:, ::4, ::4].clone() for frame in islice(stream, half)]
    at_half = peak_on_cpu()
    small += [frame[:, ::4, ::4].clone() for frame in islice(stream, total - half)]
    processor, clock = time.process_time() - processor, time.perf_counter() - clock
    step = (model.max_frames - model.default_overlap) * (model.num_inserted + 1)
    first = (model.max_frames - 1) * (model.num_inserted + 1) + 1
    joints = list(range(first, total, step))
    pixels, colour = change_at_joints(torch.stack(small) * 2 - 1, joints)
    return (
        f"## A stream\n\n{total} frames, {seconds:g} seconds of video: {total / processor:.1f} "
        f"frames per CPU second, {total / clock:.1f} per second of wall time ({rate:g} are real "
        f"time). Peak memory is {at_half / 2**20:.0f} MiB after half of the frames and "
        f"{peak_on_cpu() / 2**20:.0f} MiB after all. The change at the {len(joints)} joints of "
        f"windows, divided by the change elsewhere, is {pixels:.2f} for pixels and {colour:.2f} "
        "for the mean colour."
    )


def main(
    model: Annotated[
        Path | None, typer.Option(help="A model folder; by default the bundled model.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of runs of each part.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Length of the stream; 0 skips it.")] = 20.0,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Measure given frames, previews and a stream."""
    torch.set_num_threads(1)
    pipeline = MagicVideoPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    note = ""
    if not pipeline.capabilities.max_given_frames:
        pipeline.register_to_config(max_given_frames=8)
        note = (
            " The model was not trained to continue given frames: the costs are valid, the change "
            "at joints is not."
        )
    (request,) = pipeline.build_requests([_PROMPT], [_SEED], GenerationSettings())
    processor = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    sections = [
        "# Given frames, previews and streams\n\n"
        "Written by `python -m benchmarks.streaming`; `benchmarks/README.md` describes the method. "
        f"torch {torch.__version__}, one thread of {processor}, float32, minimum over {rounds} "
        f"rounds, model {pipeline.model_hash}. Load average of the machine at the start: "
        f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} cores.{note}"
    ]
    print(sections[0])
    for section in (given_section, preview_section):
        sections.append(section(pipeline, request, rounds))
        print(f"\n{sections[-1]}", flush=True)
    if seconds:
        sections.append(stream_section(pipeline, seconds))
        print(f"\n{sections[-1]}")
    text = "\n\n".join(sections) + "\n"
    if output is not None:
        with atomic_file(output) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

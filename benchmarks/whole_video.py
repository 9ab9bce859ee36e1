"""What one whole video costs: the command, a call in a warm process, and a peer's pipeline.

    python -m benchmarks.whole_video --output docs/whole_video.md
    python -m benchmarks.whole_video --threads 2 --rounds 3 --no-peer

The peer is diffusers' `AnimateDiffPipeline` with its own network at our width, an autoencoder of
about our size and random weights, asked for the same frames. README.md in this folder says how to
read the numbers.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler

from benchmarks.cascade import peak_on_cpu
from benchmarks.page import publish
from magicvideo import MagicVideoPipeline
from magicvideo.models.flops import count_parameters
from studies.cost.networks import NETWORKS, Workload
from studies.cost.page import table

_PROMPT = "woman surfing, medium skin tone, sky blue background"
_SEED = 1
_PEER_STEPS, _PEER_GUIDANCE = 25, 7.5
_PEER_VAE_WIDTHS = (32, 64, 96, 96)  # four levels reduce a side by 8, as our autoencoder does
_FRAMES, _SIDE = 61, 256


@dataclass(frozen=True)
class Cost:
    """Seconds of the clock and of the processor, and the peak of memory in bytes."""

    clock: float
    processor: float
    peak: int

    def cells(self) -> list[str]:
        """Return the columns of the report."""
        return [f"{self.clock:.2f}", f"{self.processor:.2f}", f"{self.peak / 2**20:.0f}"]


def run_command(model: Path | None, threads: int) -> Cost:
    """Run `magicvideo generate` once in a new process."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "magicvideo", "generate", _PROMPT, "--seed", str(_SEED)]
        command += ["--output", str(Path(folder) / "video.mp4")]
        command += ["--model", str(model)] if model else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        clock = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"the command ended with code {process.returncode}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(clock, used.ru_utime + used.ru_stime, scale * used.ru_maxrss)


def measure_calls(model: Path | None, threads: int, rounds: int) -> tuple[Cost, float]:
    """Return what a call costs in a process that has made a video before.

    Returns:
        The least of some rounds; and seconds of the clock from a call to the first preview.
    """
    torch.set_num_threads(threads)
    pipeline = MagicVideoPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    previews: list[float] = []

    def preview(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        if step == 0:
            pipe.preview(tensors["pred_original_sample"])
            previews.append(time.perf_counter())
        return {}

    def call() -> float:
        started = time.perf_counter()
        pipeline(
            _PROMPT,
            seed=_SEED,
            callback_on_step_end=preview,
            callback_on_step_end_tensor_inputs=["pred_original_sample"],
        )
        return previews[-1] - started

    call()
    cost, first = measure_least(call, rounds)
    return cost, first


def measure_least(call: Callable[[], float], rounds: int) -> tuple[Cost, float]:
    """Return the least cost of some calls, and the least of what they return."""
    clocks, processors, returned = [], [], []
    for _ in range(rounds):
        clock, processor = time.perf_counter(), time.process_time()
        returned.append(call())
        clocks.append(time.perf_counter() - clock)
        processors.append(time.process_time() - processor)
    return Cost(min(clocks), min(processors), peak_on_cpu()), min(returned)


def measure_peer(model: Path | None, threads: int) -> tuple[Cost, int, int]:
    """Return what the peer's job costs, and the parameters of its denoiser and its autoencoder."""
    torch.set_num_threads(threads)
    peer = build_peer(model)
    peer.set_progress_bar_config(disable=True)

    def call() -> float:
        peer(
            _PROMPT,
            num_frames=_FRAMES,
            height=_SIDE,
            width=_SIDE,
            num_inference_steps=_PEER_STEPS,
            guidance_scale=_PEER_GUIDANCE,
            generator=torch.Generator().manual_seed(_SEED),
            output_type="np",
        )
        return 0.0

    cost, _ = measure_least(call, 1)
    return cost, count_parameters(peer.unet), count_parameters(peer.vae)


def build_peer(model: Path | None) -> AnimateDiffPipeline:
    """Return `AnimateDiffPipeline` at the width of our denoiser, with our text encoder."""
    ours = MagicVideoPipeline.from_pretrained(model)
    config = dict(ours.unet.config)
    side = _SIDE // 2 ** (len(_PEER_VAE_WIDTHS) - 1)
    work = Workload(
        {**config, "sample_size": side, "motion_max_seq_length": 64},
        videos=1,
        frames=_FRAMES,
        side=side,
        tokens=ours.tokenizer.model_max_length,
        head_width=32,
    )
    levels = len(_PEER_VAE_WIDTHS)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=_PEER_VAE_WIDTHS,
        latent_channels=config["in_channels"],
        norm_num_groups=16,
    )
    return AnimateDiffPipeline(
        vae=vae,
        text_encoder=ours.text_encoder,
        tokenizer=ours.tokenizer,
        unet=NETWORKS["UNetMotionModel"].build(work),
        motion_adapter=None,
        scheduler=DDIMScheduler.from_config(ours.scheduler.config),
    )


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - any work
    """Run a function in a new process, whose peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(work, *arguments).result()


def report(model: Path | None, threads: list[int], rounds: int, *, peer: bool) -> str:
    """Return all costs as Markdown without a title."""
    rows, ours = [], 0.0
    for count in threads:
        plural = "s" if count > 1 else ""
        name = f"{count} thread{plural}"
        cold = min((run_command(model, count) for _ in range(rounds)), key=lambda cost: cost.clock)
        warm, preview = in_new_process(measure_calls, model, count, rounds)
        rows.append([f"the command, {name}", *cold.cells(), ""])
        rows.append([f"a call in a warm process, {name}", *warm.cells(), f"{preview:.2f}"])
        ours = warm.processor
    notes = []
    if peer:
        cost, denoiser, autoencoder = in_new_process(measure_peer, model, threads[-1])
        rows.append([f"AnimateDiffPipeline, {threads[-1]} threads", *cost.cells(), ""])
        notes = [
            "",
            f"The peer's job takes {cost.processor / ours:.1f} times the processor seconds of "
            f"ours: {_PEER_STEPS} steps with guidance for {_FRAMES} frames of {_SIDE}x{_SIDE}, a "
            f"denoiser of {denoiser / 1e6:.1f} M and an autoencoder of {autoencoder / 1e6:.1f} M "
            "parameters, random weights.",
        ]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    pipeline = MagicVideoPipeline.from_pretrained(model, offload_device="cpu")
    lines = [
        f"torch {torch.__version__}, {platform.machine()} with "
        f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores with a load average of "
        f"{load} at the end, the least of {rounds} rounds, model {pipeline.model_hash}. A video "
        f"has {_FRAMES} frames and lasts {_FRAMES / 24:.2f} s.",
        "",
        *table(["", "seconds", "CPU seconds", "MiB at peak", "first preview, s"], rows),
        *notes,
    ]
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[
        Path | None, typer.Option(help="A model folder; by default the model that is shipped.")
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads of torch; repeat it.", show_default="1 and 2"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 2,
    peer: Annotated[bool, typer.Option(help="Measure the peer, too; some minutes.")] = True,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Measure what a whole video costs, in a new process and in a warm one."""
    text = (
        "# Cost of a whole video\n\nWritten by `python -m benchmarks.whole_video`; "
        "`benchmarks/README.md` describes the method. "
        + report(model, threads or [1, 2], rounds, peer=peer)
    )
    publish(text, output)


if __name__ == "__main__":
    typer.run(main)

"""Measure how long a training step waits for its batch, at the sizes of recipes/paper.yaml.

    python -m benchmarks.loader FOLDER

Clips of noise are written to FOLDER (1.7 GB), as a prepared folder of frames and as shards of
latents. A sleep simulates a step, because a GPU computes without the CPU. The waiting time is
measured from the end of one step to the batch of the next.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import ClipRecord, DatasetInfo, write_info, write_manifest
from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.data.shards.index import (
    SampleMetadata,
    ShardIndex,
    ShardInfo,
    ShardRecord,
    write_index,
)
from magicvideo.data.shards.tar_shard import (
    add_member,
    array_bytes,
    open_archive,
    sample_key,
    to_scaled_fp16,
)
from magicvideo.training.loader import AnyDataset, DatasetBatches, load_batches
from magicvideo.training.recipe import Recipe, read_recipe

CLIPS, FRAMES = 64, 128  # frames per clip: 16 at a stride of 8
LATENT_CHANNELS, FACTOR, TOKENS, WIDTH = 4, 8, (77, 768), 768  # of Stable Diffusion 1
WARM_UP = 10


@dataclass(frozen=True)
class Waiting:
    """The waiting time of steps.

    Attributes:
        share: Fraction of the wall time.
        mean: Milliseconds per step.
        worst: 90th percentile in milliseconds.
    """

    share: float
    mean: float
    worst: float


def main(
    folder: Annotated[
        Path, typer.Argument(help="Folder for the clips, which are kept for the next run.")
    ],
    recipe: Annotated[Path, typer.Option(help="Recipe with the sizes.")] = Path("paper"),
    steps: Annotated[int, typer.Option(min=20, help="Simulated steps.")] = 60,
    milliseconds: Annotated[float, typer.Option(help="Duration of a step.")] = 100.0,
    workers: Annotated[list[int] | None, typer.Option(help="Worker processes; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
) -> None:
    """Measure the waiting time of steps, with frames and with shards."""
    torch.set_num_threads(1)
    settings = read_recipe(recipe, [])
    assert settings.keyframes is not None
    assert isinstance(settings.size, int)
    frames = write_frames(folder / "frames", settings.size)
    shards = write_shards(folder / "shards", settings.size)
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"{settings.unet.num_frames} frames of {settings.size} pixels a side, batches of "
        f"{settings.keyframes.batch_size}, steps of {milliseconds:g} ms, {cores} cores.",
        "",
        "| data | workers | waiting | ms a step | ms, slowest tenth |",
        "|---|---|---|---|---|",
    ]
    for name, dataset in (("frames", frames), ("shards", shards)):
        for count in workers or [0, 1, 2]:
            found = measure(settings, dataset, count, steps, milliseconds / 1000)
            lines.append(
                f"| {name} | {count} | {found.share:.1%} | {found.mean:.2f} | {found.worst:.2f} |"
            )
            typer.echo(lines[-1])
    text = "\n".join(lines) + "\n"
    typer.echo(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")


def measure(
    recipe: Recipe, dataset: AnyDataset, workers: int, steps: int, seconds: float
) -> Waiting:
    """Return how long simulated steps wait for their batches."""
    stage = recipe.keyframes
    assert stage is not None
    source = DatasetBatches(
        dataset, recipe.seed, stage.batch_size, recipe.unet.num_frames, stage.strides
    )
    batches = load_batches(source, range(WARM_UP + steps), torch.device("cpu"), num_workers=workers)
    waits = [_wait_for(batches, seconds) for _ in range(WARM_UP + steps)][WARM_UP:]
    mean = sum(waits) / len(waits)
    slowest = sorted(waits)[-max(1, len(waits) // 10)]
    return Waiting(mean / (mean + seconds), 1000 * mean, 1000 * slowest)


def _wait_for(batches: Iterator[object], seconds: float) -> float:
    started = time.perf_counter()
    next(batches)
    waited = time.perf_counter() - started
    time.sleep(seconds)
    return waited


def write_frames(folder: Path, size: int) -> ClipDataset:
    """Write a prepared folder of noise clips if it does not exist, and open it."""
    if not (folder / "manifest.jsonl").is_file():
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        clips = []
        for number in range(CLIPS):
            pixels = np.random.default_rng(number).integers(
                0, 256, (FRAMES, size, size, 3), dtype=np.uint8
            )
            file = folder / "clips" / f"{number:04d}.npy"
            np.save(file, pixels)
            clips.append(
                ClipRecord(
                    id=f"{number:04d}",
                    file=f"clips/{number:04d}.npy",
                    frames=FRAMES,
                    fps=24.0,
                    channels=3,
                    split="train",
                    loops=False,
                    sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                    text=f"clip number {number}",
                )
            )
        write_info(
            folder,
            DatasetInfo(
                source="noise",
                origin="noise",
                height=size,
                width=size,
                licence="none",
                split_rule="none",
            ),
        )
        write_manifest(folder, clips)
    return ClipDataset(folder)


def write_shards(folder: Path, size: int, clips_per_shard: int = 16) -> ShardDataset:
    """Write shards of noise with the shape of Stable Diffusion's latents, and open them."""
    side = size // FACTOR
    shapes = {
        "latents": (FRAMES, LATENT_CHANNELS, side, side),
        "embeddings": (FRAMES, WIDTH),
        "tokens": TOKENS,
    }
    if not folder.is_dir():
        folder.mkdir(parents=True)
        records = []
        for shard in range(CLIPS // clips_per_shard):
            file = folder / f"shard-{shard:05d}.tar"
            with open_archive(file) as archive:
                for place in range(clips_per_shard):
                    rng = np.random.default_rng((shard, place))
                    packed = {
                        name: to_scaled_fp16(rng.normal(0, 1, shape).astype(np.float32))
                        for name, shape in shapes.items()
                    }
                    metadata = SampleMetadata(
                        id=f"{shard}/{place}",
                        file="noise.mp4",
                        source="noise",
                        source_sha256=None,
                        caption=f"clip number {place}",
                        subject=f"{shard}/{place}",
                        background=None,
                        fps=24.0,
                        loops=False,
                        parts={},
                        latents_scale=packed["latents"][1],
                        embeddings_scale=packed["embeddings"][1],
                        tokens_scale=packed["tokens"][1],
                    )
                    key = sample_key(place, 0)
                    add_member(archive, f"{key}.json", metadata.model_dump_json().encode())
                    for name, (values, _) in packed.items():
                        add_member(archive, f"{key}.{name}.npy", array_bytes(values))
            content = file.read_bytes()
            records.append(
                ShardRecord(
                    file=file.name,
                    split="train",
                    bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                    clips=clips_per_shard,
                    samples=clips_per_shard,
                )
            )
        info = ShardInfo(
            source="noise",
            origin="noise",
            height=size,
            width=size,
            fit="crop",
            frame_step=1,
            licence="none",
            split_rule="none",
            variants=1,
            clips_per_shard=clips_per_shard,
            parts={},
            device="cpu",
            threads=1,
        )
        write_index(folder, ShardIndex(info=info, shards=tuple(records)))
    return ShardDataset(folder)


if __name__ == "__main__":
    typer.run(main)

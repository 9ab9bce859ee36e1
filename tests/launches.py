"""Launches of two single-threaded processes, and the recipe that they train."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# port 0 is one that is free
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2")
PORT = "--main_process_port=0"
STAGE = "autoencoder"


def launch(launcher, *arguments, timeout=600):
    """Run a launcher with arguments and return its result."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_recipe(path, data, output, steps):
    """Write a recipe of a tiny autoencoder alone, which saves as often as it can; return `path`."""
    stage = {
        "steps": steps,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "checkpoint_minutes": 0.001,
        "mixed_precision": "no",
        "model": {
            "latent_channels": 5,
            "widths": [6, 10],
            "norm_num_groups": 2,
            "encoder_layers": [1, 1],
            "decoder_layers": [1, 1],
        },
    }
    values = {"name": "tiny", "seed": 3, "data": str(data), "output": str(output), STAGE: stage}
    path.write_text(yaml.safe_dump(values))
    return path


def steps_logged(output):
    """Return the number of updates that a run has logged."""
    log = output / STAGE / "log.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0

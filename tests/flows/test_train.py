"""Training through the real command line: killed at once, it goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file

STEPS = 300
RECIPE = {
    "name": "tiny",
    "seed": 3,
    "autoencoder": {
        "steps": STEPS,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "checkpoint_minutes": 0.001,
        "model": {
            "latent_channels": 5,
            "widths": [6, 10],
            "norm_num_groups": 2,
            "encoder_layers": [1, 1],
            "decoder_layers": [1, 1],
        },
    },
}


@pytest.fixture
def write_recipe(prepared, tmp_path):
    def write(name):
        path = tmp_path / f"{name}.yaml"
        output = tmp_path / name
        path.write_text(yaml.safe_dump({**RECIPE, "data": str(prepared), "output": str(output)}))
        return path, output

    return write


def command(*arguments):
    return [sys.executable, "-m", "magicvideo", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, check=False
    )


def steps_logged(output):
    log = output / "autoencoder" / "log.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


def losses_of(output):
    lines = (output / "autoencoder" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_killed_run_ends_as_the_unbroken_one(write_recipe):
    recipe, output = write_recipe("killed")
    train = ("train", recipe, "--threads", "1")
    child = subprocess.Popen(command(*train), stdout=subprocess.DEVNULL)
    while steps_logged(output) < 40 and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert steps_logged(output) < STEPS
    resumed = run(*train)
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on from step" in resumed.stdout

    recipe, whole = write_recipe("whole")
    unbroken = run("train", recipe, "--threads", "1", "--set", "autoencoder.checkpoint_minutes=9")
    assert unbroken.returncode == 0, unbroken.stderr
    weights = "autoencoder/product/vae/diffusion_pytorch_model.safetensors"
    first, second = load_file(output / weights), load_file(whole / weights)
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    losses = [losses_of(folder) for folder in (output, whole)]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]


def test_mistakes_end_with_code_2_and_one_sentence(write_recipe, tmp_path):
    recipe, output = write_recipe("mistaken")
    mistakes = {
        ("train", tmp_path / "absent.yaml"): "absent.yaml does not exist",
        ("train", recipe, "--stage", "autoencode"): "did you mean autoencoder?",
        ("train", recipe, "--set", "autoencoder.step=3"): "did you mean steps?",
        ("train", recipe, "--set", f"data={tmp_path}"): "prepare",
    }
    for arguments, sentence in mistakes.items():
        answer = run(*arguments)
        assert answer.returncode == 2, arguments
        assert sentence in answer.stderr
        assert "Traceback" not in answer.stderr
    assert not (output / "autoencoder" / "checkpoints").exists()


def test_a_dry_run_shows_settings_and_cost_and_trains_nothing(write_recipe):
    recipe, output = write_recipe("planned")
    answer = run("train", recipe, "--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert '"latent_channels": 5' in answer.stdout
    assert "600" in answer.stdout  # samples: 300 updates of 2
    assert not output.exists()

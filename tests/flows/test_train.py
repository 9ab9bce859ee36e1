"""Training through the real command line: a killed run resumes exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launches import ACCELERATE, PORT, launch, steps_logged, write_recipe
from safetensors.torch import load_file

from magicvideo import cli

STEPS = 160
EXAMPLES = Path(__file__).parents[2] / "examples" / "accelerate"


@pytest.fixture
def write(prepared, tmp_path):
    def write(name):
        output = tmp_path / name
        return write_recipe(tmp_path / f"{name}.yaml", prepared, output, STEPS), output

    return write


def command(*arguments):
    return [sys.executable, "-m", "magicvideo", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, check=False
    )


def losses_of(output):
    lines = (output / "autoencoder" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_killed_run_ends_like_an_uninterrupted_run(write):
    recipe, output = write("killed")
    train = ("train", recipe, "--threads", "1")
    child = subprocess.Popen(command(*train), stdout=subprocess.DEVNULL)
    while steps_logged(output) < 40 and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert steps_logged(output) < STEPS
    resumed = run(*train)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes from step" in resumed.stdout

    recipe, whole = write("whole")
    unbroken = ("train", recipe, "--threads", "1", "--set", "autoencoder.checkpoint_minutes=9")
    assert cli.run(list(map(str, unbroken))) == 0
    weights = "autoencoder/output/vae/diffusion_pytorch_model.safetensors"
    first, second = load_file(output / weights), load_file(whole / weights)
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    losses = [losses_of(folder) for folder in (output, whole)]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]


def test_mistakes_end_with_code_2_and_one_sentence(write, tmp_path, capsys):
    recipe, output = write("mistaken")
    answer = run("train", tmp_path / "absent.yaml")
    assert answer.returncode == 2
    assert "absent.yaml does not exist" in answer.stderr
    assert "Traceback" not in answer.stderr
    mistakes = {
        ("train", recipe, "--stage", "autoencode"): "did you mean autoencoder?",
        ("train", recipe, "--set", "autoencoder.step=3"): "did you mean steps?",
        ("train", recipe, "--set", f"data={tmp_path}"): "prepare",
    }
    for arguments, sentence in mistakes.items():
        assert cli.run(list(map(str, arguments))) == 2, arguments
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error
    assert not (output / "autoencoder" / "checkpoints").exists()


def test_a_dry_run_shows_settings_and_cost_and_trains_nothing(write, capsys):
    recipe, output = write("planned")
    assert cli.run(["train", str(recipe), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "passes" in shown
    assert f"{2 * STEPS}" in shown  # samples: updates of 2
    assert not output.exists()


@pytest.mark.parametrize(
    "config",
    ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)],
)
def test_the_shipped_settings_of_accelerate_launch_two_processes(config, write):
    recipe, output = write(config)
    settings = f"--config_file={EXAMPLES / f'{config}.yaml'}"
    train = ("train", recipe, "--threads", "1", "--set", "autoencoder.steps=3")
    answer = launch((*ACCELERATE, settings, PORT), "-m", "magicvideo", *train)
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert len(losses_of(output)) == 3
    state = json.loads((output / "autoencoder/checkpoints/step-00000003/state.json").read_text())
    assert state["global_batch"] == 4  # 2 samples in each process
    assert answer.stdout.count("autoencoder: done") == 1

"""Interrupted or damaged training: the error is reported, and training resumes exactly."""

import json
import os
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_recipe import tiny_values

from magicvideo.cli import run
from magicvideo.training.tasks.autoencoder import AutoencoderTask

OUTPUT = "output/vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def train(prepared, tmp_path):
    """A function that trains four steps of an autoencoder, with a checkpoint after each."""
    values = tiny_values(prepared, tmp_path / "run")
    values["autoencoder"]["checkpoint_minutes"] = 1e-9
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return lambda: run(["train", str(tmp_path / "recipe.yaml"), "--stage", "autoencoder"])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "autoencoder"


@pytest.fixture
def at_step(monkeypatch):
    """A function that runs an action in the middle of a step, once."""
    losses, plan = AutoencoderTask.losses, {}

    def watched(task, network, batch, generator):
        plan["step"] += 1
        if plan["step"] == plan["at"]:
            plan["action"](network)
        return losses(task, network, batch, generator)

    def arrange(step, action):
        plan.update(step=0, at=step, action=action)
        monkeypatch.setattr(AutoencoderTask, "losses", watched)

    return arrange


def steps_of(folder):
    return sorted(int(path.name[-2:]) for path in (folder / "checkpoints").iterdir())


def send(number):
    return lambda *_: os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_after_the_step_with_its_checkpoint(
    train, folder, at_step, number, code, capsys
):
    at_step(2, send(number))
    assert train() == code
    assert steps_of(folder) == [1, 2]
    assert "run the same command to resume" in capsys.readouterr().out
    assert train() == 0
    assert "resumes from step 2 of 4" in capsys.readouterr().out


@pytest.mark.parametrize("saving", [False, True])
def test_ctrl_c_twice_ends_at_once_and_keeps_the_previous_checkpoint(
    train, folder, at_step, monkeypatch, saving, capsys
):
    press = send(signal.SIGINT)

    def again(*_):
        time.sleep(1.1)  # what comes within a second is one keystroke, passed on by a launcher
        press()

    if saving:
        at_step(3, lambda _: (press(), monkeypatch.setattr(torch, "get_num_threads", again)))
    else:
        at_step(3, lambda _: (press(), again()))
    assert train() == 130
    monkeypatch.undo()
    assert steps_of(folder) == [1, 2]
    assert "Traceback" not in capsys.readouterr().err
    assert train() == 0
    assert "resumes from step 2 of 4" in capsys.readouterr().out


def test_damaged_checkpoints_are_named_and_training_never_restarts(train, folder, at_step, capsys):
    at_step(3, send(signal.SIGTERM))
    assert train() == 143
    files = [folder / f"checkpoints/step-0000000{step}/network.safetensors" for step in (2, 3)]
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    log = (folder / "log.jsonl").read_bytes()
    capsys.readouterr()
    assert train() == 2
    assert "No checkpoint in" in capsys.readouterr().err
    assert (folder / "log.jsonl").read_bytes() == log
    assert steps_of(folder) == [2, 3]
    files[0].write_bytes(whole[0])
    assert train() == 0
    said = capsys.readouterr().out
    assert f"skipped a checkpoint: {files[1]} is damaged" in said
    assert "resumes from step 2 of 4" in said
    assert steps_of(folder) == [3, 4]


def test_a_non_finite_gradient_changes_nothing(train, folder, at_step, capsys):
    def spoil(network):
        parameter = next(p for p in network.parameters() if p.requires_grad)
        parameter.register_hook(lambda gradient: gradient * float("inf"))
        seen.append(network)

    seen = []
    at_step(3, spoil)
    assert train() == 2
    error = capsys.readouterr().err
    assert "autoencoder: the norm of the gradient of step 2 is " in error
    assert "(clips clip00" in error
    assert steps_of(folder) == [1, 2]
    before = load_file(folder / "checkpoints/step-00000002/network.safetensors")
    for name, tensor in seen[0].state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2
    assert train() == 0


def test_a_deleted_clip_is_named_and_training_can_resume(train, folder, at_step, prepared, capsys):
    files = sorted((prepared / "clips").iterdir())
    whole = {file: file.read_bytes() for file in files}

    def cut(_):
        for file, content in whole.items():
            file.write_bytes(content[:-1])

    try:
        at_step(2, cut)
        assert train() == 2
        assert ".npy is cut off; delete it and run" in capsys.readouterr().err
    finally:
        for file, content in whole.items():
            file.write_bytes(content)
    assert steps_of(folder) == [1, 2]
    assert train() == 0
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]

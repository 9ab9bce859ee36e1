import json
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from magicvideo.atomic_io import write_checksums
from magicvideo.errors import UserError
from magicvideo.training.checkpoint import EMA, CheckpointManager, TrainingState
from magicvideo.training.optim import build_optimizer
from magicvideo.training.recipe import ImageStageConfig

SETTINGS = ImageStageConfig(steps=9, batch_size=1, learning_rate=0.01)


def make_state(steps=0, width=5):
    torch.manual_seed(steps)
    network = nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 2, 1))
    network.to(memory_format=torch.channels_last)
    state = TrainingState(network, build_optimizer(network, SETTINGS), EMA(network, 0.9))
    for step in range(steps):
        advance(state, step)
    return state


def advance(state, step):
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(step))
    state.network(x).square().sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.network, step)
    state.step += 1


def everything(state):
    moments = [
        state.optimizer.state[p][key]
        for p in state.network.parameters()
        for key in sorted(state.optimizer.state[p])
    ]
    return [*state.network.state_dict().values(), *state.ema.shadow.values(), *moments]


def equal(first, second):
    pairs = zip(everything(first), everything(second), strict=True)
    return first.step == second.step and all(torch.equal(a, b) for a, b in pairs)


def test_a_restored_run_continues_like_an_uninterrupted_run(tmp_path):
    unbroken = make_state(3)
    checkpoints = CheckpointManager(tmp_path, keep=2, stage="image")
    path = checkpoints.save(unbroken)
    restored = make_state(0)
    about = checkpoints.restore(restored, path)
    assert about["threads"] == torch.get_num_threads()
    assert equal(unbroken, restored)
    for step in range(3, 6):
        advance(unbroken, step)
        assert not equal(unbroken, restored)
        advance(restored, step)
        assert equal(unbroken, restored)


@pytest.mark.parametrize("optimizer", ["adafactor", "whole numbers"])
def test_the_whole_optimizer_state_is_restored(tmp_path, optimizer):
    def fresh():
        state = make_state(0)
        changes = {"optimizer": "adafactor"} if optimizer == "adafactor" else {}
        settings = SETTINGS.model_copy(update=changes)
        state.optimizer = build_optimizer(state.network, settings)
        return state

    state, again = fresh(), fresh()
    advance(state, 0)
    if optimizer == "whole numbers":  # as those of bitsandbytes keep them
        for kept in state.optimizer.state.values():
            kept["step"] = 7
            kept["state1"] = torch.arange(6, dtype=torch.uint8)
    checkpoints = CheckpointManager(tmp_path, keep=1, stage="image")
    checkpoints.restore(again, checkpoints.save(state))
    for own, other in zip(state.network.parameters(), again.network.parameters(), strict=True):
        expected, found = state.optimizer.state[own], again.optimizer.state[other]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert type(found[key]) is type(value), key
            assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)), key


def test_the_latest_checkpoints_are_kept(tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=2, stage="image")
    for steps in (1, 2, 3, 4):
        checkpoints.save(make_state(steps))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("file", ["network", "ema", "optimizer"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path, file, damage):
    checkpoints = CheckpointManager(tmp_path, keep=2, stage="image")
    older = checkpoints.save(make_state(1))
    newer = checkpoints.save(make_state(2)) / f"{file}.safetensors"
    content = bytearray(newer.read_bytes())
    if damage == "remove":
        newer.unlink()
    elif damage == "flip":
        content[-5] ^= 16
        newer.write_bytes(content)
    else:
        newer.write_bytes(content[: len(content) // 2 if damage == "truncate" else 0])
    assert checkpoints.latest() == older
    assert len(checkpoints.rejected) == 1
    assert file in checkpoints.rejected[0]


def test_training_never_silently_restarts_without_a_valid_checkpoint(tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=2, stage="image")
    assert checkpoints.latest() is None
    path = checkpoints.save(make_state(1))
    (path / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"No checkpoint in .* can be used"):
        checkpoints.latest()


def test_another_stage_or_shape_is_refused_before_anything_changes(tmp_path):
    path = CheckpointManager(tmp_path, keep=1, stage="image").save(make_state(2))
    with pytest.raises(UserError, match="is of stage image and not of clip"):
        CheckpointManager(tmp_path, keep=1, stage="clip").restore(make_state(0), path)
    with pytest.raises(UserError, match=r"0\.bias has the shape \[5\] and the network \[4\]"):
        CheckpointManager(tmp_path, keep=1, stage="image").restore(make_state(0, width=4), path)


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=1, stage="image")
    path = checkpoints.save(make_state(1))
    deeper = make_state(0)
    deeper.network.append(nn.Conv2d(2, 2, 1))
    with pytest.raises(UserError, match=r"lacks 2\.bias \(2 tensors are missing\)"):
        checkpoints.restore(deeper, path)
    shallow = make_state(0)
    del shallow.network[1]
    with pytest.raises(UserError, match=r"has 1\.bias, which the network lacks \(2 such\)"):
        checkpoints.restore(shallow, path)


def test_a_changed_json_of_the_state_is_detected(tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=1, stage="image")
    path = checkpoints.save(make_state(1))
    about = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**about, "step": 7}))
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        checkpoints.latest()
    write_checksums(path)
    assert checkpoints.latest() == path


def test_a_kill_at_any_time_during_saving_leaves_a_complete_checkpoint(tmp_path):
    """A child process saves repeatedly and is killed; its last checkpoint must load, 50 times."""
    state = make_state(2)
    checkpoints = CheckpointManager(tmp_path, keep=2, stage="image")
    checkpoints.save(state)
    rng = random.Random(3)
    for _ in range(50):
        child = os.fork()
        if child == 0:
            while True:
                state.step += 1
                checkpoints.save(state)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        after = CheckpointManager(tmp_path, keep=2, stage="image")
        newest = after.latest()
        assert after.rejected == []
        assert not list(tmp_path.glob(".partial-*"))
        restored = make_state(0)
        after.restore(restored, newest)
        assert restored.step >= state.step
        assert torch.equal(restored.network[0].weight, state.network[0].weight)
        state.step = restored.step


def test_a_background_checkpoint_has_the_state_of_its_step(tmp_path):
    state = make_state(2)
    kept = [tensor.clone() for tensor in everything(state)]
    checkpoints = CheckpointManager(tmp_path, keep=2, stage="image", async_bytes=0)
    path = checkpoints.save(state)
    for step in range(2, 5):  # updates go on while it is written
        advance(state, step)
    checkpoints.wait()
    assert checkpoints.latest() == path
    restored = make_state(0)
    checkpoints.restore(restored, path)
    assert restored.step == 2
    for found, expected in zip(everything(restored), kept, strict=True):
        assert torch.equal(found, expected)


def test_a_failed_background_checkpoint_is_reported(tmp_path, monkeypatch):
    checkpoints = CheckpointManager(tmp_path, keep=2, stage="image", async_bytes=0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("magicvideo.training.checkpoint.save_file", full)
    checkpoints.save(make_state(1))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert checkpoints.latest() is None


def test_checkpoints_do_not_contain_frozen_weights(tmp_path):
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(requires_grad=False)
    state = TrainingState(network, build_optimizer(network, SETTINGS), EMA(network, 0.9))
    path = CheckpointManager(tmp_path, keep=1, stage="image").save(state)
    for file in ("network", "ema"):
        assert load_file(path / f"{file}.safetensors").keys() == {"1.weight", "1.bias"}

"""Checkpoints under disk faults: a published one loads, and the last valid one is kept."""

import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from magicvideo.atomic_io import PARTIAL, atomic_folder, remove_partial, verify_checksums
from magicvideo.cli import run
from magicvideo.training.checkpoint import EMA, CheckpointManager, TrainingState
from magicvideo.training.optim import build_optimizer
from magicvideo.training.recipe import ImageStageConfig

SETTINGS = ImageStageConfig(steps=9, batch_size=1, learning_rate=0.01)


def make_state(step):
    """A state after `step` steps that differs from that after any other number."""
    torch.manual_seed(step)
    network = nn.Conv2d(3, 5, 2)
    state = TrainingState(network, build_optimizer(network, SETTINGS), EMA(network, 0.9), step)
    network(torch.randn(2, 3, 6, 7)).square().sum().backward()
    state.optimizer.step()
    return state


def assert_restores(checkpoints, step):
    restored, expected = make_state(0), make_state(step)
    checkpoints.restore(restored, checkpoints.latest())
    assert checkpoints.rejected == []
    assert restored.step == step
    for name, tensor in expected.network.state_dict().items():
        assert torch.equal(restored.network.state_dict()[name], tensor)


def test_a_kill_at_any_step_of_saving_keeps_the_old_or_the_new_checkpoint(tmp_path, killed_at_step):
    before = CheckpointManager(tmp_path / "before", keep=2, stage="image")
    for step in (1, 2):
        before.save(make_state(step))
    state, found = make_state(3), []
    for number in range(200):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(before.folder, folder)
        checkpoints = CheckpointManager(folder, keep=2, stage="image")
        if not killed_at_step(lambda here=checkpoints: here.save(state), number):
            break
        after = CheckpointManager(folder, keep=2, stage="image")
        assert {path.name for path in folder.iterdir()} <= {f"step-0000000{n}" for n in range(1, 4)}
        found.append(int(after.latest().name[-1]))
        assert_restores(after, found[-1])
    assert found == sorted(found)
    assert min(found.count(2), found.count(3)) > 5  # kills on both sides of the rename
    assert_restores(checkpoints, 3)


def test_a_kill_while_a_folder_is_replaced_leaves_no_mixture(tmp_path, killed_at_step):
    def write(folder, text):
        with atomic_folder(folder) as partial:
            for name in ("first", "second"):
                (partial / name).write_text(text)

    missing = 0
    write(tmp_path / "before", "old")
    for number in range(200):
        shutil.copytree(tmp_path / "before", tmp_path / f"{number}" / "model")
        target = tmp_path / f"{number}" / "model"
        if not killed_at_step(lambda here=target: write(here, "new"), number):
            break
        remove_partial(target.parent)
        missing += not target.exists()
        if target.exists():
            verify_checksums(target)
            assert len({(target / name).read_text() for name in ("first", "second")}) == 1
    assert missing == 1  # between the two renames, as the docstring says
    assert (target / "second").read_text() == "new"


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, full_disk):
    checkpoints = CheckpointManager(tmp_path, keep=1, stage="image")
    checkpoints.save(make_state(1))
    for room in (0, 100, 300):
        with full_disk(room), pytest.raises(OSError, match="File too large") as caught:
            checkpoints.save(make_state(2))
        assert caught.value.filename == str(tmp_path / "step-00000002")
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert_restores(checkpoints, 1)
    checkpoints.save(make_state(2))
    assert_restores(checkpoints, 2)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 64 kB, and a function that gives it room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("file systems are mounted by root alone")
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder, lambda: subprocess.run([*mount[:4], "remount,size=9m", folder], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_with_the_free_space(small_disk, shapes, capsys):
    folder, make_room = small_disk
    out, source = str(folder / "out"), str(shapes)
    assert run(["data", "prepare", source, out, "--size", "64"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: The disk is full at {out}/clips/clip000.npy (0.1 MB are free")
    assert error.count("\n") == 1
    assert list((folder / "out" / "clips").iterdir()) == []
    checkpoints = CheckpointManager(folder / "run", keep=1, stage="image")
    with pytest.raises(OSError, match="No space left on device"):
        save_large(checkpoints)
    assert list((folder / "run").iterdir()) == []
    make_room()
    save_large(checkpoints)
    verify_checksums(checkpoints.latest())
    assert run(["data", "prepare", source, out, "--size", "64"]) == 0


def save_large(checkpoints):
    network = nn.Linear(97, 131)
    state = TrainingState(network, build_optimizer(network, SETTINGS), EMA(network, 0.9), 4)
    checkpoints.save(state)


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_later_checkpoints_never_replace_a_valid_one(tmp_path, keep):
    checkpoints = CheckpointManager(tmp_path, keep=keep, stage="image")
    good = checkpoints.save(make_state(1))
    for step in (7, 8):
        shutil.copytree(good, tmp_path / f"step-0000000{step}")
        (tmp_path / f"step-0000000{step}" / "ema.safetensors").write_bytes(b"")
    assert checkpoints.latest() == good
    checkpoints.save(make_state(2))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000001", "step-00000002"][-keep:]
    assert_restores(checkpoints, 2)


def test_a_checkpoint_that_cannot_be_deleted_does_not_stop_training(tmp_path, monkeypatch):
    checkpoints = CheckpointManager(tmp_path, keep=1, stage="image")
    checkpoints.save(make_state(1))
    with monkeypatch.context() as patched:
        patched.setattr("magicvideo.training.checkpoint.shutil.rmtree", refuse)
        checkpoints.save(make_state(2))
    assert_restores(checkpoints, 2)
    checkpoints.save(make_state(3))
    assert_restores(CheckpointManager(tmp_path, keep=1, stage="image"), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def refuse(path, ignore_errors=False):
    if not ignore_errors:
        raise PermissionError(13, "Permission denied", str(path))


def test_a_checkpoint_without_checksums_is_skipped(tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=3, stage="image")
    for step in (1, 2, 3):
        path = checkpoints.save(make_state(step))
    (path / "SHA256SUMS").unlink()
    (tmp_path / f"{PARTIAL}step-00000004").mkdir()
    assert checkpoints.latest().name == "step-00000002"
    assert "has no SHA256SUMS" in checkpoints.rejected[0]
    assert load_file(checkpoints.latest() / "network.safetensors").keys() == {"weight", "bias"}

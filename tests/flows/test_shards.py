"""Shards through the real command line: killed encoding, and training that reads shards."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
import torch
import yaml
from launches import TORCHRUN, launch

from magicvideo import cli
from magicvideo.atomic_io import write_checksums
from magicvideo.data.manifest import ClipRecord, read_manifest, write_manifest
from magicvideo.data.prepare import _write_array
from magicvideo.data.shards.index import INDEX, is_shard_location, read_index
from magicvideo.errors import UserError

SHARED = {
    "steps": 4,
    "batch_size": 3,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "lr_decay_ratio": 0.0,
    "log_every": 1,
}
STAGES = ("image", "unsupervised", "keyframes", "interpolation")


@pytest.fixture(scope="module")
def clips(prepared, tmp_path_factory):
    """Seven prepared videos, and four transparent clips that each take longer than all of these."""
    folder = tmp_path_factory.mktemp("clips") / "data"
    shutil.copytree(prepared, folder)
    known = read_manifest(folder)
    for number in range(4):
        pixels = np.full((20 + number, 24, 24, 4), 10 * number, np.uint8)
        _write_array(folder / f"clips/glass{number}.npy", pixels)
        known.append(
            ClipRecord(
                id=f"glass{number}",
                file=f"clips/glass{number}.npy",
                frames=len(pixels),
                fps=12,
                channels=4,
                split="train",
                loops=False,
                sha256="0",
                text="a pane of glass",
            )
        )
    write_manifest(folder, known)
    return folder


@pytest.fixture(scope="module")
def encode(clips, tiny_model):
    """A function that returns the arguments of the command that encodes the clips."""

    def arguments(out):
        settings = ("--variants", "12", "--clips-per-shard", "1")
        return ["data", "encode", str(clips), str(out), "--model", str(tiny_model), *settings]

    return arguments


@pytest.fixture(scope="module")
def shards(encode, tmp_path_factory):
    """All clips in shards; do not write into it."""
    out = tmp_path_factory.mktemp("encoded") / "shards"
    assert cli.run(encode(out)) == 0
    return out


@pytest.fixture(scope="module")
def start(tiny_model, tmp_path_factory):
    """The tiny model without its interpolator, whose sizes differ from those of the recipe."""
    folder = tmp_path_factory.mktemp("start") / "model"
    shutil.copytree(tiny_model, folder)
    shutil.rmtree(folder / "interpolator")
    write_checksums(folder)
    return folder


@pytest.fixture
def write_recipe(start, tmp_path):
    """A function that writes a recipe of the denoiser's stages over the tiny model."""

    def write(data, name):
        values = {
            "name": "sharded",
            "data": str(data),
            "output": str(tmp_path / name),
            "init_from": str(start),
            "seed": 3,
            "shards": {"window": 3, "cache": str(tmp_path / "cache")},
            "unet": {
                "block_out_channels": [8, 16],
                "attention_levels": [True, False],
                "attention_heads": 2,
                "norm_num_groups": 4,
                "num_frames": 5,
            },
            "image": SHARED,
            "unsupervised": {**SHARED, "image_condition": 1.0},
            "keyframes": {**SHARED, "image_condition": 0.3, "preview_every": 3},
            "interpolation": {**SHARED, "num_inserted": 2, "preview_every": 3},
            "video_vae": {**SHARED, "num_frames": 5, "temporal_heads": 2},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def contents(folder):
    wanted = [path for path in folder.iterdir() if path.suffix == ".tar" or path.name == INDEX]
    return {path.name: path.read_bytes() for path in wanted}


def losses_of(output, stage):
    lines = (output / stage / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def train(recipe, *arguments):
    return cli.run(["train", str(recipe), "--threads", "1", *arguments])


def test_killed_encoding_resumes_to_the_same_bytes(encode, shards, tmp_path, capsys):
    out = tmp_path / "shards"
    child = subprocess.Popen(
        [sys.executable, "-m", "magicvideo", *encode(out)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not list(out.glob("train-*.json")) and child.poll() is None:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (out / INDEX).exists()
    assert cli.run(encode(out)) == 0
    made, kept = re.findall(r"(\d+) shards written, (\d+) from before", capsys.readouterr().out)[0]
    assert int(made) >= 1
    assert int(kept) >= 1
    assert contents(out) == contents(shards)
    assert not list(out.glob(".partial-*"))


def test_two_processes_encode_what_one_does(encode, shards, tmp_path):
    answer = launch(TORCHRUN, "-m", "magicvideo", *encode(tmp_path / "shards"))
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert all(f"by process {number} of 2" in answer.stdout for number in range(2))
    assert contents(tmp_path / "shards") == contents(shards)


def test_a_source_is_prepared_as_shards_by_one_command(
    shapes, tiny_model, tmp_path, capsys, monkeypatch
):
    settings = (
        "--model",
        tiny_model,
        "--size",
        "24",
        "--holdout",
        "0.35",
        "--clips-per-shard",
        "2",
    )

    def prepare(out):
        return list(map(str, ("data", "prepare", shapes, out, *settings)))

    assert cli.run(prepare(tmp_path / "one")) == 0
    assert "complete, 7 clips, 0 files skipped" in capsys.readouterr().out
    assert sorted(path.suffix for path in (tmp_path / "one").iterdir()).count(".tar") == 4
    with monkeypatch.context() as launched:  # what two processes do, one after the other
        launched.setenv("WORLD_SIZE", "2")
        for rank in ("1", "0"):
            launched.setenv("RANK", rank)
            assert cli.run(prepare(tmp_path / "two")) == 0
            assert f"by process {rank} of 2" in capsys.readouterr().out
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    victim = min((tmp_path / "two").glob("train-*.json"))  # as a kill before its note leaves it
    victim.unlink()
    assert cli.run(prepare(tmp_path / "two")) == 0
    assert "1 shards written, 3 from before" in capsys.readouterr().out
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    index = read_index(tmp_path / "two")
    assert (index.info.height, index.info.width, index.info.frame_step) == (24, 24, 1)


def test_preparing_refuses_what_would_do_nothing(
    shapes, prepared, tiny_model, tmp_path, capsys, monkeypatch
):
    prepare = ("data", "prepare", str(shapes), str(tmp_path / "new"))
    assert cli.run([*prepare, "--variants", "0"]) == 2
    assert "--variants only applies to shards; add --model" in capsys.readouterr().err
    again = ("data", "prepare", str(prepared), str(tmp_path / "new"), "--model", str(tiny_model))
    assert cli.run([*again]) == 2
    assert "create shards with `magicvideo data encode`" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run([*prepare]) == 2
    assert "increase --workers instead of using torchrun" in capsys.readouterr().err
    assert cli.run([*prepare, "--model", str(tiny_model), "--ray"]) == 2
    assert "run it without torchrun" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_training_on_shards_resumes_and_reads_a_url_the_same(shards, write_recipe, tmp_path):
    recipe = write_recipe(shards, "whole")
    for stage in STAGES:
        assert train(recipe, "--stage", stage) == 0
    resumed = write_recipe(shards, "resumed")
    for stage in STAGES:
        assert train(resumed, "--stage", stage, "--set", f"{stage}.steps=2") == 0
        assert train(resumed, "--stage", stage) == 0
    store = fsspec.filesystem("memory")
    store.put(str(shards), "memory://bucket/shards", recursive=True)
    remote = write_recipe("memory://bucket/shards", "remote")
    assert train(remote, "--stage", "image") == 0
    store.store.clear()
    for stage in STAGES:
        losses = losses_of(tmp_path / "whole", stage)
        assert len(set(losses)) == 4
        assert losses_of(tmp_path / "resumed", stage) == losses
    assert losses_of(tmp_path / "remote", "image") == losses_of(tmp_path / "whole", "image")


def test_settings_that_do_not_fit_shards_are_refused(shards, write_recipe, tmp_path, capsys):
    recipe = write_recipe(shards, "mistaken")
    changed = tmp_path / "changed"
    shutil.copytree(shards, changed)
    index = json.loads((changed / INDEX).read_text())
    index["info"]["parts"]["vae"] = "0"
    (changed / INDEX).write_text(json.dumps(index))
    victim = sorted((changed).glob("train-*.tar"))[1]
    cut = tmp_path / "cut"
    shutil.copytree(shards, cut)
    (cut / victim.name).write_bytes(victim.read_bytes()[:-9])
    mistakes = {
        ("--stage", "video_vae"): "Stage video_vae needs frames",
        ("--stage", "image", "--set", f"data={changed}"): "encoded with another vae than this",
        ("--stage", "image", "--set", f"data={cut}"): f"{victim.name} is cut off or changed",
        ("--stage", "image", "--set", "data=nosuch://x"): "nosuch://x cannot be opened",
        ("--set", "size=32"): "have size 24, but the recipe has size=32",
    }
    for arguments, sentence in mistakes.items():
        assert train(recipe, *arguments) == 2, arguments
        assert sentence in capsys.readouterr().err


def test_options_without_an_effect_are_refused(encode, shards, tmp_path, capsys, monkeypatch):
    assert cli.run([*encode(tmp_path / "new"), "--size", "32"]) == 2
    assert "is already prepared, so --size 32 has no effect" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert cli.run([*encode(tmp_path / "new"), "--device", "cuda"]) == 2
        assert "Device 'cuda' does not exist" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run([*encode(tmp_path / "new"), "--ray"]) == 2
    assert "run it without torchrun" in capsys.readouterr().err
    half = tmp_path / "half"
    assert cli.run(encode(half)) == 0
    assert "shards of other processes are missing" in capsys.readouterr().out
    assert not (half / INDEX).exists()
    with pytest.raises(UserError, match="holds no finished shards"):
        read_index(half)
    assert is_shard_location(half)
    for path in half.glob("*.tar"):
        assert path.read_bytes() == (shards / path.name).read_bytes()

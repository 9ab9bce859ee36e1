"""Two processes train like one: the same samples, the same loss curve, the same files."""

import json
import shutil

import keyframe_runs
import pytest
import torch
from keyframe_runs import GLOBAL_BATCH, PREVIEWED_AT, STEPS, STOPPED_AT, run
from launches import TORCHRUN, launch
from safetensors.torch import load_file

from magicvideo.errors import UserError
from magicvideo.training.distributed import DistributedContext, init_distributed

RUNS = ("ddp", "fsdp2", "back", "onward")
LEFT_OUT = ("keyframes", "interpolation", "video_vae", "checkpoints", "tensorboard")


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """Folders of finished runs: by one process, by two, and by both in turn."""
    folder = tmp_path_factory.mktemp("processes")
    for name in ("single", *RUNS):
        shutil.copytree(trained.output, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    assert run(folder / "single", batch_size=GLOBAL_BATCH, terminated=True) == 143
    shutil.copytree(folder / "single" / "keyframes", folder / "onward" / "keyframes")
    assert run(folder / "single", batch_size=GLOBAL_BATCH) == 0
    answer = launch(TORCHRUN, keyframe_runs.__file__, folder)
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert run(folder / "back", batch_size=GLOBAL_BATCH) == 0
    return folder


def curve(folder):
    lines = (folder / "keyframes" / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    return torch.tensor([[entry["loss"], entry["gradient_norm"]] for entry in entries])


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_curve_equals_that_of_one_process(runs, name):
    single = curve(runs / "single")
    torch.testing.assert_close(curve(runs / name)[:, 0], single[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(curve(runs / name)[:, 1], single[:, 1], atol=1e-3, rtol=1e-3)
    assert (single[1:, 0] - single[:-1, 0]).abs().min() > 1e-4  # no step is another's


@pytest.mark.parametrize("name", RUNS)
def test_one_process_writes_and_the_output_is_complete(runs, name):
    samples = runs / name / "keyframes" / "samples"
    assert [p.name for p in samples.iterdir()] == [f"step-{PREVIEWED_AT:08d}.png"]
    part = "keyframes/output/unet/diffusion_pytorch_model.safetensors"
    found, expected = load_file(runs / name / part), load_file(runs / "single" / part)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        # a gradient of nothing but rounding still moves a weight by the learning rate
        torch.testing.assert_close(found[key], tensor, atol=5e-3, rtol=0, msg=key)


def test_a_signal_to_the_second_process_stops_both(runs):
    """Both processes saved and ended after the step, and `back` resumed from this checkpoint."""
    steps = [p.name for p in (runs / "back" / "keyframes" / "checkpoints").iterdir()]
    assert f"step-{STOPPED_AT:08d}" in steps
    about = json.loads(
        (runs / "fsdp2/keyframes/checkpoints" / f"step-{STEPS:08d}/state.json").read_text()
    )
    assert (about["step"], about["global_batch"]) == (STEPS, GLOBAL_BATCH)


LAUNCHES = {
    "set fsdp_version: 2": {"ACCELERATE_USE_FSDP": "true"},
    "fsdp_offload_params: false": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_OFFLOAD_PARAMS": "true",
    },
    "DeepSpeed is not supported": {"ACCELERATE_USE_DEEPSPEED": "true"},
}


@pytest.mark.parametrize("sentence", LAUNCHES)
def test_unsupported_settings_of_a_launch_give_one_sentence(sentence, monkeypatch):
    for name, value in LAUNCHES[sentence].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        init_distributed()


def test_half_precision_that_needs_scaling_is_refused_where_gradients_are_sharded(monkeypatch):
    for name, value in keyframe_runs.FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="set it to bf16"):
        DistributedContext.from_env("fp16")

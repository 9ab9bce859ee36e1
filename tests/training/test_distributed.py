"""Two processes train what one trains: the same samples, the same curve, the same files."""

import json
import shutil
import sys
from dataclasses import replace

import keyframe_runs
import pytest
import torch
from keyframe_runs import GLOBAL_BATCH, HAS_DEEPSPEED, PREVIEWED_AT, STEPS, STOPPED_AT, run
from launches import TORCHRUN, launch
from safetensors.torch import load_file

from magicvideo.errors import UserError
from magicvideo.training.distributed import DistributedContext, init_distributed

PLAIN, ZERO = ("ddp", "fsdp2", "back", "onward"), ("zero2", "zero1", "zero-back")
without_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs deepspeed")
RUNS = (*PLAIN, *(pytest.param(name, marks=without_deepspeed) for name in ZERO))
DEEPSPEED = keyframe_runs.ZERO
LEFT_OUT = ("keyframes", "interpolation", "video_vae", "checkpoints", "tensorboard")


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """Folders of finished runs: by one process, by two, and begun by one and ended by the other."""
    folder = tmp_path_factory.mktemp("processes")
    for name in ("single", *PLAIN, *ZERO):
        shutil.copytree(trained.output, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    assert run(folder / "single", batch_size=GLOBAL_BATCH, terminated=True) == 143
    for name in ("onward", "zero1"):
        shutil.copytree(folder / "single" / "keyframes", folder / name / "keyframes")
    assert run(folder / "single", batch_size=GLOBAL_BATCH) == 0
    answer = launch(TORCHRUN, keyframe_runs.__file__, folder)
    assert answer.returncode == 0, answer.stderr[-4000:]
    for name in ("back", "zero-back") if HAS_DEEPSPEED else ("back",):
        assert run(folder / name, batch_size=GLOBAL_BATCH) == 0
    return folder


def curve(folder):
    lines = (folder / "keyframes" / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    return torch.tensor([[entry["loss"], entry["gradient_norm"]] for entry in entries])


@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_that_of_one_process(runs, name):
    single = curve(runs / "single")
    torch.testing.assert_close(curve(runs / name)[:, 0], single[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(curve(runs / name)[:, 1], single[:, 1], atol=1e-3, rtol=1e-3)
    assert (single[1:, 0] - single[:-1, 0]).abs().min() > 1e-4  # no step is another's


@pytest.mark.parametrize("name", RUNS)
def test_one_process_writes_and_the_product_is_whole(runs, name):
    samples = runs / name / "keyframes" / "samples"
    assert [p.name for p in samples.iterdir()] == [f"step-{PREVIEWED_AT:08d}.png"]
    part = "keyframes/output/unet/diffusion_pytorch_model.safetensors"
    found, expected = load_file(runs / name / part), load_file(runs / "single" / part)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        # a gradient of nothing but rounding still moves a weight by the learning rate
        torch.testing.assert_close(found[key], tensor, atol=5e-3, rtol=0, msg=key)


def test_a_signal_to_the_second_process_is_heard_by_both(runs):
    """Both saved and ended after the step; what they saved is what `back` went on from."""
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
    "zero_stage=3 is not supported": {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "deepspeed_config_file is not": {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"},
    "offload_param_device is not": {
        **DEEPSPEED,
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
    },
}


@pytest.mark.parametrize("sentence", LAUNCHES)
def test_what_a_launch_cannot_have_is_one_sentence(sentence, monkeypatch):
    for name, value in LAUNCHES[sentence].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        init_distributed()


@pytest.mark.parametrize("settings", [keyframe_runs.FSDP2, keyframe_runs.ZERO])
def test_half_precision_that_needs_scaling_is_refused_where_gradients_are_shared_out(
    settings, monkeypatch
):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="set it to bf16"):
        DistributedContext.from_env("fp16")


def test_deepspeed_is_asked_for_by_name_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for name, value in DEEPSPEED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"pip install 'magicvideo\[deepspeed\]'"):
        init_distributed()


def test_a_network_with_a_number_is_not_shared_out_by_deepspeed():
    processes = replace(DistributedContext.from_env("no"), zero_stage=2)
    network = torch.nn.Linear(3, 2)
    assert processes.uses_zero(network)
    assert not replace(processes, zero_stage=None).uses_zero(network)
    network.temperature = torch.nn.Parameter(torch.tensor(1.0))
    assert not processes.uses_zero(network)

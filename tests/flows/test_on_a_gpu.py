"""A GPU gives the results of a CPU; skipped without a CUDA device."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from tiny_model import frames_of
from tiny_recipe import SHARED, STAGES, report_to, tiny_values

from magicvideo import MagicVideoPipeline, cli
from magicvideo.training.recipe import Recipe
from magicvideo.training.run import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

PROMPT = "woman surfing, medium skin tone, blue background"
UPSCALER = {"crop": 12, "model": {"factor": 3, "widths": [8, 12], "num_blocks": [1, 1]}}
ALL_STAGES = (*STAGES, "upscaler")


@pytest.fixture(scope="module")
def exact():
    """The frames of the bundled model on the CPU."""
    return frames_of(MagicVideoPipeline.from_pretrained(), PROMPT, seed=3, num_inference_steps=4)


def made_on_gpu(dtype):
    pipeline = MagicVideoPipeline.from_pretrained(torch_dtype=dtype).to("cuda")
    return frames_of(pipeline, PROMPT, seed=3, num_inference_steps=4).float().cpu()


@pytest.mark.parametrize(
    ("dtype", "levels"), [(torch.float32, 1), (torch.float16, 4), (torch.bfloat16, 12)]
)
def test_a_video_equals_that_of_the_cpu(dtype, levels, exact):
    made = made_on_gpu(dtype)
    assert made.shape == exact.shape
    assert made.isfinite().all()
    assert 255 * (made - exact).abs().mean() < levels


def test_a_lazily_loaded_model_gives_the_same_video_and_frees_memory(exact):
    before = torch.cuda.memory_allocated()
    pipeline = MagicVideoPipeline.from_pretrained(offload_device="cuda")
    made = frames_of(pipeline, PROMPT, seed=3, num_inference_steps=4)
    assert 255 * (made.cpu() - exact).abs().mean() < 1
    del made
    assert torch.cuda.memory_allocated() - before < 2**20


def test_the_command_uses_a_gpu_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.cuda.reset_peak_memory_stats()
    assert cli.run(["generate", PROMPT, "--output", "x.gif", "--steps", "2"]) == 0
    assert torch.cuda.max_memory_allocated() > 2**24
    assert (tmp_path / "x.gif").stat().st_size > 1000


def test_running_out_of_memory_gives_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(40e6 / total)
    try:
        code = cli.run(["generate", PROMPT, "--output", "x.gif", "--device", "cuda"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert code == 2
    message = capsys.readouterr().err
    assert "memory" in message
    assert "Traceback" not in message


@pytest.fixture(scope="module")
def values(prepared, tmp_path_factory):
    """All stages of the tiny recipe, with the upscaler."""
    values = tiny_values(prepared, tmp_path_factory.mktemp("gpu") / "run")
    values["upscaler"] = {**SHARED, **UPSCALER, "steps": 4, "data": str(prepared)}
    return values


def losses_of(output, stage):
    lines = (output / stage / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def single(values):
    """All stages trained in single precision, each from the outputs of earlier stages."""
    recipe = Recipe.model_validate(values)
    train(recipe, None, report_to(print))
    return recipe


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_has_the_initial_loss_of_single_precision(
    precision, values, single, tmp_path
):
    for stage in ALL_STAGES:
        half = values | {"output": tmp_path / "run"}
        half[stage] = {**values[stage], "mixed_precision": precision}
        shutil.copytree(single.output, half["output"], dirs_exist_ok=True)
        shutil.rmtree(half["output"] / stage)
        train(Recipe.model_validate(half), stage, report_to(print))
        losses = losses_of(half["output"], stage)
        assert np.isfinite(losses).all()
        assert losses[0] == pytest.approx(losses_of(single.output, stage)[0], rel=0.02), stage


def test_activation_checkpointing_keeps_the_losses(values, single, tmp_path):
    changed = values | {"output": tmp_path / "run"}
    changed["keyframes"] = {**values["keyframes"], "gradient_checkpointing": True}
    shutil.copytree(single.output, changed["output"])
    shutil.rmtree(changed["output"] / "keyframes")
    train(Recipe.model_validate(changed), "keyframes", report_to(print))
    before = losses_of(single.output, "keyframes")
    assert losses_of(changed["output"], "keyframes") == pytest.approx(before, rel=1e-3)


def test_a_run_resumes_from_a_checkpoint(values, single, tmp_path):
    for steps in (2, 4):
        halted = values | {"output": tmp_path / "run"}
        halted["keyframes"] = {**values["keyframes"], "steps": steps, "lr_decay_ratio": 0.0}
        if steps == 2:
            shutil.copytree(single.output, halted["output"])
            shutil.rmtree(halted["output"] / "keyframes")
        train(Recipe.model_validate(halted), "keyframes", report_to(print))
    assert len(losses_of(tmp_path / "run", "keyframes")) == 4


def test_clips_are_encoded_as_on_the_cpu(prepared, tiny_model, tmp_path):
    for device in ("cpu", "cuda"):
        out = str(tmp_path / device)
        command = ["data", "encode", str(prepared), out, "--model", str(tiny_model)]
        assert cli.run([*command, "--device", device]) == 0
    arrays = {device: arrays_of(tmp_path / device) for device in ("cpu", "cuda")}
    assert arrays["cpu"].keys() == arrays["cuda"].keys()
    for name, expected in arrays["cpu"].items():
        assert np.abs(arrays["cuda"][name] - expected).mean() < 0.01 * expected.std(), name


def arrays_of(folder):
    """All arrays of all shards, by their names."""
    arrays = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".npy"):
                    stored = io.BytesIO(archive.extractfile(member).read())
                    arrays[member.name] = np.load(stored).astype(np.float32)
    return arrays

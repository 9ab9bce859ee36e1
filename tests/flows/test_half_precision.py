"""Every stage trains in mixed precision with the loss of single precision."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import SHARED, STAGES, report_to, task_of, tiny_values

from magicvideo.diffusion.noise import per_sample_generators
from magicvideo.training.recipe import Recipe
from magicvideo.training.run import bf16_slowdown, train

UPSCALER = {"crop": 12, "model": {"factor": 3, "widths": [8, 12], "num_blocks": [1, 1]}}


@pytest.fixture(scope="module")
def recipe(prepared, tmp_path_factory):
    """All stages, trained for one step in bfloat16."""
    values = tiny_values(prepared, tmp_path_factory.mktemp("half") / "run")
    values["upscaler"] = {**SHARED, **UPSCALER, "data": str(prepared)}
    half = {
        "steps": 1,
        "gradient_accumulation_steps": 1,
        "preview_every": 9,
        "mixed_precision": "bf16",
    }
    recipe = Recipe.model_validate(
        values | {name: {**values[name], **half} for name in (*STAGES, "upscaler")}
    )
    said = []
    train(recipe, None, report_to(said.append))
    is_emulated = bf16_slowdown() > 5
    warned = sum("no bfloat16 instructions" in line for line in said)
    assert warned == is_emulated * (len(STAGES) + 1)
    return recipe


def first_loss(recipe, name):
    """The loss of the first step: as it was logged, and as single precision has it."""
    task, count = task_of(recipe, name), recipe.stages()[name].batch_size
    loss = task.losses(
        task.network,
        task.batches.get_batch(0),
        per_sample_generators(0, count, recipe.seed, name, "sample"),
    )["loss"]
    assert loss.dtype == torch.float32
    line = (recipe.output / name / "log.jsonl").read_text().splitlines()[0]
    return json.loads(line)["loss"], loss.item()


@pytest.mark.parametrize("name", [*STAGES, "upscaler"])
def test_a_stage_in_bfloat16_has_the_loss_of_float32(name, recipe):
    logged, exact = first_loss(recipe, name)
    if name == "interpolation":  # its networks begin with an output of zero, and data are exact
        assert logged == pytest.approx(exact, rel=1e-6)
        return
    assert logged == pytest.approx(exact, rel=0.02)
    assert logged != pytest.approx(exact, rel=1e-6)  # halved numbers were at work


def test_a_stage_in_float32_may_follow(recipe, tmp_path):
    values = recipe.model_dump() | {"output": tmp_path / "run"}
    values["autoencoder"]["mixed_precision"] = "no"
    single = Recipe.model_validate(values)
    train(single, "autoencoder")
    logged, exact = first_loss(single, "autoencoder")
    assert logged == pytest.approx(exact, rel=1e-6)


def test_weights_stay_in_float32(recipe):
    files = list(recipe.output.rglob("output/**/*.safetensors"))
    assert len(files) > len(STAGES)
    for file in files:
        assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} == {
            torch.float32
        }

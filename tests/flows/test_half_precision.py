"""Every stage with mixed precision: it trains, and its loss is that of single precision."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import SHARED, STAGES, tiny_values

from magicvideo.diffusion.noise import sample_draws
from magicvideo.train.recipe import Recipe
from magicvideo.train.run import slowdown_in_bfloat16, train
from magicvideo.train.stages import make_task

UPSCALER = {"crop": 12, "model": {"factor": 3, "widths": [8, 12], "num_blocks": [1, 1]}}


@pytest.fixture(scope="module")
def recipe(prepared, tmp_path_factory):
    """All stages, trained for one step in bfloat16."""
    values = tiny_values(prepared, tmp_path_factory.mktemp("half") / "run")
    values["upscaler"] = {**SHARED, **UPSCALER, "data": str(prepared)}
    half = {"steps": 1, "accumulate": 1, "preview_every": 9, "mixed_precision": "bf16"}
    recipe = Recipe.model_validate(
        values | {name: {**values[name], **half} for name in (*STAGES, "upscaler")}
    )
    said = []
    train(recipe, None, said.append)
    is_emulated = slowdown_in_bfloat16() > 5
    assert sum("no instructions for bfloat16" in line for line in said) == is_emulated * (len(STAGES) + 1)
    return recipe


@pytest.mark.parametrize("name", [*STAGES, "upscaler"])
def test_a_stage_in_bfloat16_has_the_loss_of_float32(name, recipe):
    task, count = make_task(recipe, name), recipe.stages()[name].batch_size
    loss = task.losses(
        task.network, task.read(0), sample_draws(0, count, recipe.seed, name, "sample")
    )["loss"]
    assert loss.dtype == torch.float32
    first = json.loads((recipe.output / name / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(loss.item(), rel=0.02)
    assert first["loss"] != loss.item()  # halved numbers were at work


def test_weights_stay_in_float32(recipe):
    files = list(recipe.output.rglob("product/**/*.safetensors"))
    assert len(files) > len(STAGES)
    for file in files:
        assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} == {
            torch.float32
        }

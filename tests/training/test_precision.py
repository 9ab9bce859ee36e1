"""The precision of a stage if the recipe does not set it."""

import json

import pytest
import torch
from tiny_recipe import task_of

from magicvideo.training import run
from magicvideo.training.progress import LineReporter
from magicvideo.training.resolve import plan_stage

CPU = torch.device("cpu")


@pytest.fixture
def choose(recipe, monkeypatch):
    """A function that chooses for given speeds: of a matrix product, and of an update."""

    def choose(setting, product, updates):
        stage = recipe.autoencoder.model_copy(update={"mixed_precision": setting})
        plan = plan_stage(recipe.model_copy(update={"autoencoder": stage}), "autoencoder")
        monkeypatch.setattr(run, "bf16_slowdown", lambda: product)
        monkeypatch.setattr(run, "seconds_per_update", lambda *given: updates[given[-1]])
        said = []
        task = task_of(recipe, "autoencoder")
        return run.choose_precision(plan, task, CPU, LineReporter(said.append)), said, plan

    return choose


@pytest.mark.parametrize(
    ("product", "updates", "expected"),
    [
        (0.4, {"no": 2.0, "bf16": 1.5}, "bf16"),
        (0.4, {"no": 2.0, "bf16": 2.5}, "no"),
        (7.0, {}, "no"),  # without instructions for it nothing is measured
    ],
)
def test_a_cpu_takes_bfloat16_where_an_update_measures_faster(choose, product, updates, expected):
    found, said, plan = choose("auto", product, updates)
    assert found == expected
    assert bool(said) == bool(updates)
    kept = json.loads((plan.folder / "precision.json").read_text())
    assert kept == {"mixed_precision": expected}


def test_a_stage_that_was_stopped_keeps_its_precision(choose):
    assert choose("auto", 0.4, {"no": 2.0, "bf16": 1.5})[0] == "bf16"
    assert choose("auto", 7.0, {})[0] == "bf16"


def test_the_precision_setting_is_used(choose):
    assert choose("no", 0.4, {})[0] == "no"
    found, said, _ = choose("bf16", 7.0, {})
    assert found == "bf16"
    assert "no bfloat16 instructions" in said[0]


def test_timing_does_not_change_weights_or_gradients(recipe):
    task, plan = task_of(recipe, "autoencoder"), plan_stage(recipe, "autoencoder")
    before = {name: tensor.clone() for name, tensor in task.network.state_dict().items()}
    assert run.seconds_per_update(plan, task, CPU, "no") > 0
    for name, tensor in task.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in task.network.parameters())

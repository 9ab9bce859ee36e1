"""Properties that let many processes train as one: independent samples, gradients everywhere."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_recipe import STAGES, task_of

from magicvideo.diffusion.noise import per_sample_generators

BATCH = 3  # of the tiny recipe


def losses_of(task, position, half=None):
    """The losses of two batches, or of their concatenation."""
    count = BATCH if half is not None else 2 * BATCH
    task.batches = replace(task.batches, batch_size=count)
    batch = task.batches.get_batch(2 * position + half if half is not None else position)
    first = (2 * position + half if half is not None else position) * count
    return task.losses(task.network, batch, per_sample_generators(first, count, 3, "sample"))


@pytest.mark.parametrize("name", STAGES)
def test_two_halves_of_a_batch_have_its_loss_and_all_weights_have_gradients(trained, name):
    task = task_of(trained, name)
    whole = losses_of(task, 1)["loss"]
    whole.backward()
    silent = [
        key for key, p in task.network.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert silent == []
    if name == "clip":
        return  # a frame is told from the others of its batch
    with torch.no_grad():
        halves = [losses_of(task, 1, half)["loss"] for half in (0, 1)]
    assert halves[0] != halves[1]
    torch.testing.assert_close(sum(halves) / 2, whole.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_losses_use_the_network_that_is_passed(trained, name):
    """If weights are sharded, the task's original network stays unchanged."""
    task = task_of(trained, name)
    batch, count = task.batches.get_batch(0), task.config.batch_size
    handed = copy.deepcopy(task.network)
    with torch.no_grad():
        expected = task.losses(handed, batch, per_sample_generators(0, count, 3, "sample"))["loss"]
        for parameter in task.network.parameters():
            parameter.fill_(torch.nan)
        found = task.losses(handed, batch, per_sample_generators(0, count, 3, "sample"))["loss"]
    assert torch.equal(found, expected)

"""Stage `keyframes`: given frames, motion scores, weights of temporal modes, and Muon."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import STAGES, task_of, tiny_values

from magicvideo.diffusion.noise import per_sample_generators
from magicvideo.training.recipe import Recipe
from magicvideo.training.run import train

ENCODERS = ["vae", "text_encoder", "tokenizer", "image_encoder"]


def clip_recipe(model, prepared, output, *, motion=False, noise=None, **keyframes):
    values = tiny_values(prepared, output)
    for name in STAGES:
        if name != "keyframes":
            del values[name]
    values["unet"]["motion_condition"] = motion
    values["noise"] = noise or {"noise_correlation": 0.8, "noise_decay": 0.6}
    values["keyframes"] |= keyframes
    return Recipe.model_validate({**values, "init_from": str(model), "init_components": ENCODERS})


def losses_of(task, position=0):
    batch = task.batches.get_batch(position)
    generator = per_sample_generators(0, len(batch.captions), "test")
    return task.losses(task.network, batch, generator)["loss"]


class Recording(torch.nn.Module):
    """A denoiser that records its inputs and returns one learned number per frame."""

    def __init__(self, network):
        super().__init__()
        self.image_embed_dim = network.image_embed_dim
        self.level = torch.nn.Parameter(torch.zeros(network.unet.config.num_frames))

    def forward(self, latents, timestep, *conditions):
        self.latents, self.timestep, self.motion = latents, timestep, conditions[-1]
        return torch.zeros_like(latents) + self.level[None, :, None, None, None]


def test_given_frames_have_no_noise_timestep_zero_and_no_loss(model, prepared, tmp_path):
    recipe = clip_recipe(
        model,
        prepared,
        tmp_path,
        given_frames_prob=1.0,
        max_given_frames=3,
        mode_weight_limit=8.0,
        batch_size=6,
    )
    task = task_of(recipe, "keyframes")
    network = Recording(task.network)
    batch = task.batches.get_batch(0)
    loss = task.losses(network, batch, per_sample_generators(0, 6, "test"))["loss"]
    given = network.timestep == 0
    counts = given.sum(dim=1)
    assert network.timestep.shape == (6, 4)
    assert counts.min() >= 1
    assert counts.max() <= 3
    # given frames come first, and all others of a clip have one step
    assert torch.equal(given, torch.arange(4) < counts[:, None])
    for steps, count in zip(network.timestep, counts, strict=True):
        assert steps[count:].unique().numel() == 1
    loss.backward()
    # the first frame is given in every clip: its number has no gradient, the last frame's has one
    assert network.level.grad[0] == 0
    assert network.level.grad[-1].abs() > 1e-6


def test_motion_scores_are_measured_and_dropped(model, prepared, tmp_path):
    recipe = clip_recipe(model, prepared, tmp_path, motion=True, motion_dropout=0.5, batch_size=16)
    task = task_of(recipe, "keyframes")
    config = task.network.unet.config
    assert config.motion_std > 0
    assert config.motion_std != 1.0
    network = Recording(task.network)
    task.losses(network, task.batches.get_batch(0), per_sample_generators(0, 16, "test"))
    unknown = network.motion.isnan()
    assert 2 <= unknown.sum() <= 14
    assert network.motion[~unknown].abs().max() < 5


def test_without_a_motion_condition_the_network_gets_no_score(model, prepared, tmp_path):
    task = task_of(clip_recipe(model, prepared, tmp_path), "keyframes")
    network = Recording(task.network)
    task.losses(network, task.batches.get_batch(0), per_sample_generators(0, 3, "test"))
    assert network.motion is None
    assert network.timestep.shape == (3,)


@pytest.mark.parametrize("limit", [None, 8.0])
def test_mode_weights_change_the_loss_of_clips(limit, model, prepared, tmp_path):
    plain = losses_of(task_of(clip_recipe(model, prepared, tmp_path), "keyframes"))
    task = task_of(clip_recipe(model, prepared, tmp_path, mode_weight_limit=limit), "keyframes")
    loss = losses_of(task)
    assert (loss == plain).item() == (limit is None)


def test_a_run_with_muon_resumes_exactly(model, prepared, tmp_path):
    def run(output, steps):
        changes = {"optimizer": "muon", "steps": steps, "lr_decay_ratio": 0.0, "ema_decay": 0.5}
        changes |= {"given_frames_prob": 0.5, "mode_weight_limit": 8.0}
        train(clip_recipe(model, prepared, output, motion=True, **changes))
        (file,) = (output / "keyframes" / "output" / "unet").glob("*.safetensors")
        return load_file(file)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4)
    assert set(whole) == set(parts)
    assert any("motion_embedding" in name for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name

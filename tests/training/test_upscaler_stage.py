"""The stage `upscaler`: its samples, its loss, and training in the real loop."""

import json
import os
import signal

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from tiny_recipe import SHARED, report_to, task_of, tiny_values
from torch import nn

from magicvideo.data.degrade import downsample
from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources import folder
from magicvideo.diffusion.noise import per_sample_generators
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.upscaler import Upscaler, upsample_bicubic
from magicvideo.rng import StackedGenerator
from magicvideo.training.dry_run import estimate_run
from magicvideo.training.recipe import Recipe
from magicvideo.training.run import train
from magicvideo.training.trainer import Interrupted

SIZE, CROP, STEPS = 64, 32, 24


def recipe_of(small, large, output, **changes):
    """A recipe of two stages: the autoencoder on small frames and the upscaler on large ones."""
    values = tiny_values(small, output)
    upscaler = {
        **SHARED,
        "steps": STEPS,
        "batch_size": 6,
        "learning_rate": 4e-3,
        "preview_every": 20,
        "data": str(large),
        "crop": CROP,
        "model": {"widths": [8, 12], "num_blocks": [1, 1]},
        **changes,
    }
    kept = {key: values[key] for key in ("name", "data", "output", "seed", "autoencoder")}
    return Recipe.model_validate({**kept, "upscaler": upscaler})


@pytest.fixture(scope="module")
def large(shapes, tmp_path_factory):
    """The seven videos at 64 pixels, one frame in five."""
    path = tmp_path_factory.mktemp("large") / "data"
    prepare(folder.scan(shapes, holdout=0.35), path, FrameSettings(SIZE, SIZE, step=5))
    return path


@pytest.fixture(scope="module")
def finished(prepared, large, tmp_path_factory):
    """Both stages, trained; do not write into the run."""
    recipe = recipe_of(prepared, large, tmp_path_factory.mktemp("finished"))
    train(recipe)
    return recipe


@pytest.fixture
def make(prepared, large, finished):
    """A function that builds a task with other settings and the trained autoencoder."""

    def make(**changes):
        recipe = recipe_of(prepared, large, finished.output, **changes)
        return task_of(recipe, "upscaler")

    return make


def log_of(recipe):
    lines = (recipe.output / "upscaler" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


class KnowsAll(nn.Module):
    """Predicts perfectly, because it looks up the position of a crop in the known frames."""

    def __init__(self, task, large, small):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.config, self.kept = task.network.config, task.scheduler.alphas_cumprod
        self.small = small
        self.residuals = (large - upsample_bicubic(small, 4)) / self.config.residual_scale
        self.places = []

    def forward(self, noisy, small, timestep, level):  # noqa: ARG002 - the interface
        clean = torch.stack([self.look_up(i, crop) for i, crop in enumerate(small)])
        kept = self.kept[timestep][:, None, None, None]
        return (kept.sqrt() * noisy - clean) / (1 - kept).sqrt() + self.anchor

    def look_up(self, i, crop):
        side = crop.shape[-1]
        windows = self.small[i].unfold(1, side, 1).unfold(2, side, 1)
        errors = (windows - crop[:, None, None]).abs().amax(dim=(0, 3, 4))
        top, left = divmod(int(errors.argmin()), errors.shape[1])
        assert errors.min() < 1e-3
        self.places.append((top, left))
        return self.residuals[i, :, 4 * top : 4 * (top + side), 4 * left : 4 * (left + side)]


def test_a_perfect_prediction_has_no_loss(make):
    task = make(degradation_prob=0, vae_roundtrip_prob=0, max_noise_level=1e-5, batch_size=40)
    batch = task.batches.get_batch(3)
    frames = batch.frames[:, 0]
    oracle = KnowsAll(task, frames, downsample(frames, 4))
    known = task.losses(oracle, batch, StackedGenerator([torch.Generator().manual_seed(0)]))
    fresh = task.losses(task.network, batch, StackedGenerator([torch.Generator().manual_seed(0)]))
    # a plain crop is found in several places, whose residuals are not quite the same
    assert known["loss"] < 0.01 * fresh["loss"]
    assert len(set(oracle.places)) > 20


def test_small_frames_pass_through_the_autoencoder(make):
    task = make(degradation_prob=0, vae_roundtrip_prob=1, max_latent_noise=0, max_noise_level=1e-5)
    batch = task.batches.get_batch(0)
    frames = batch.frames[:, 0]
    with torch.no_grad():
        rebuilt = decode_latents(task.vae, encode_frames(task.vae, downsample(frames, 4)[:, None]))
    oracle = KnowsAll(task, frames, rebuilt[:, 0])
    known = task.losses(oracle, batch, StackedGenerator([torch.Generator().manual_seed(0)]))
    fresh = task.losses(task.network, batch, StackedGenerator([torch.Generator().manual_seed(0)]))
    assert known["loss"] < 0.01 * fresh["loss"]


def test_small_frames_are_degraded_in_every_way(make):
    seen = {}
    for name, changes in {
        "clean": {"max_latent_noise": 0, "max_noise_level": 1e-5},
        "latent": {"max_latent_noise": 3, "max_noise_level": 1e-5},
        "pixel": {"max_latent_noise": 0, "max_noise_level": 0.5},
        "varied": {"max_latent_noise": 0, "max_noise_level": 1e-5, "degradation_prob": 1},
    }.items():
        task = make(**{"degradation_prob": 0, "vae_roundtrip_prob": 1, "crop": SIZE, **changes})
        task.network.register_forward_pre_hook(
            lambda _, given, name=name: seen.__setitem__(name, given)
        )
        task.losses(
            task.network,
            task.batches.get_batch(0),
            StackedGenerator([torch.Generator().manual_seed(0)]),
        )
    noises = {name: (given[1] - seen["clean"][1]).flatten(1) for name, given in seen.items()}
    assert noises["varied"].std(dim=1).min() > 5e-4  # pixel noise is 50 times less
    assert noises["latent"].std(dim=1).max() > 0.01
    levels = seen["pixel"][3]
    torch.testing.assert_close(noises["pixel"].std(dim=1), levels, atol=0, rtol=0.1)
    assert 0.1 < levels.max() <= 0.5
    torch.testing.assert_close(levels, seen["clean"][3] * 5e4)


def test_two_halves_of_a_batch_have_its_loss(make):
    """Some samples pass through the autoencoder: others keep their random numbers."""

    def loss(first, count):
        task = make(batch_size=count, degradation_prob=0.5, vae_roundtrip_prob=0.5)
        batch, draws = (
            task.batches.get_batch(first // count),
            per_sample_generators(first, count, 2, "sample"),
        )
        return task.losses(task.network, batch, draws)["loss"].detach()

    halves = [loss(first, 3) for first in (12, 15)]
    assert halves[0] != halves[1]
    torch.testing.assert_close(sum(halves) / 2, loss(12, 6), atol=1e-6, rtol=1e-5)


def test_residuals_have_unit_variance(make):
    task = make(
        degradation_prob=0, vae_roundtrip_prob=0, batch_size=60, max_noise_level=1e-5, crop=SIZE
    )
    frames = task.batches.get_batch(5).frames[:, 0]
    residuals = frames - upsample_bicubic(downsample(frames, 4), 4)
    scale = task.network.config.residual_scale
    assert residuals.square().mean().sqrt() == pytest.approx(scale, rel=0.15)
    again = make(
        degradation_prob=0, vae_roundtrip_prob=0, batch_size=60, max_noise_level=1e-5, crop=SIZE
    )
    assert again.network.config.residual_scale == scale


def test_some_updates_lower_the_loss_on_unseen_frames(make, finished):
    def loss_of(network):
        values = []
        for position in range(1000, 1010):
            draws = StackedGenerator([torch.Generator().manual_seed(position)])
            values.append(
                task.losses(network, task.batches.get_batch(position), draws)["loss"].item()
            )
        return sum(values) / len(values)

    task = make(ema_decay=0)
    before = loss_of(task.network)
    newest = sorted((finished.output / "upscaler" / "checkpoints").glob("step-*"))[-1]
    task.network.load_state_dict(load_file(newest / "network.safetensors"))
    with torch.no_grad():
        assert loss_of(task.network) < 0.8 * before


def test_generation_loads_the_output(finished):
    product = finished.output / "upscaler" / "output"
    upscaler = Upscaler.from_pretrained(product / "upscaler")
    assert (
        upscaler.config.residual_scale
        == task_of(finished, "upscaler").network.config.residual_scale
    )
    assert 0.01 < upscaler.config.residual_scale < 0.5
    assert upscaler.config.max_noise_level == finished.upscaler.max_noise_level
    scheduler = DDIMScheduler.from_pretrained(product / "upscaler_scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.alphas_cumprod[-1] == 0
    sheets = finished.output / "upscaler" / "samples"
    assert [path.name for path in sheets.iterdir()] == ["step-00000020.png"]


def test_a_run_stopped_by_sigterm_ends_like_an_uninterrupted_run(
    prepared, large, finished, tmp_path
):
    recipe = recipe_of(prepared, large, tmp_path / "run")

    def stop_at_step_9(line):
        if line.startswith("upscaler 9/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(recipe, None, report_to(stop_at_step_9))
    said = []
    train(recipe, "upscaler", report_to(said.append))
    assert f"upscaler: resumes from step 9 of {STEPS}" in said
    assert log_of(recipe) == log_of(finished)
    name = "upscaler/output/upscaler/diffusion_pytorch_model.safetensors"
    expected, found = (load_file(one.output / name) for one in (finished, recipe))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_the_dry_run_counts_its_cost(finished):
    last = estimate_run(finished)[-1]
    assert (last.name, last.updates, last.samples) == ("upscaler", STEPS, 6 * STEPS)
    assert last.gflops > 0
    network = task_of(finished, "upscaler").network
    assert last.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("crop", [20, 72])
def test_a_crop_that_does_not_fit_is_named(make, crop):
    with pytest.raises(UserError, match=f"upscaler.crop={crop} is not a multiple of 8 of at most"):
        make(crop=crop)


def test_frames_that_the_autoencoder_cannot_take_are_named(prepared, finished):
    # a quarter of 24 pixels is less than a patch of the autoencoder
    recipe = recipe_of(prepared, prepared, finished.output, crop=24)
    with pytest.raises(UserError, match=r"have size 24; .* must be multiples of 32"):
        task_of(recipe, "upscaler")


def test_needs_the_autoencoder(prepared, large, tmp_path):
    with pytest.raises(UserError, match="Stage autoencoder is not finished"):
        train(recipe_of(prepared, large, tmp_path), "upscaler")

"""The stage `video_vae`: its losses, its frozen encoder, and what it learns."""

import json
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from tiny_recipe import task_of

from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.video_vae import load_autoencoder
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.rng import StackedGenerator
from magicvideo.training.dry_run import estimate_run
from magicvideo.training.export import export
from magicvideo.training.losses import image_gradient_loss, perceptual_distance
from magicvideo.training.optim import build_optimizer
from magicvideo.training.resolve import component_source, image_vae_source

CLIPS, FRAMES, SIDE = 2, 5, 24


@pytest.fixture
def task(trained):
    """Its latents have no noise."""
    return task_of(with_settings(trained, max_latent_noise=0.0), "video_vae")


@pytest.fixture
def batch(task):
    return task.batches.get_batch(3)


def with_settings(recipe, **changes):
    settings = recipe.video_vae.model_copy(update=changes)
    return recipe.model_copy(update={"video_vae": settings})


def still_in(clips):
    """Mask of the pixels with the colour of the previous frame."""
    still = (clips[:, 1:] == clips[:, :-1]).all(dim=2, keepdim=True)
    assert still.any()
    assert not still.all()
    return still.expand_as(clips[:, 1:])


def tensors(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_the_encoder_is_the_image_autoencoders_bit_for_bit(trained):
    image, video = image_vae_source(trained).path(), component_source(trained, "vae").path()
    assert image.parts[-3:] == ("autoencoder", "output", "vae")
    assert video.parts[-3:] == ("video_vae", "output", "vae")
    before, after = tensors(image), tensors(video)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.startswith("encoder"), name
    frames = torch.rand(CLIPS, FRAMES, 3, SIDE, SIDE) * 2 - 1
    first, second = load_autoencoder(image), load_autoencoder(video)
    latents = encode_frames(first, frames)
    assert torch.equal(latents, encode_frames(second, frames))
    assert (decode_latents(first, latents) - decode_latents(second, latents)).abs().max() > 1e-4


def test_other_stages_use_the_image_autoencoder(trained):
    frozen = task_of(trained, "interpolation").encoders.vae
    assert not hasattr(frozen, "temporal_mid")


def test_starts_as_the_image_autoencoder_and_sums_the_losses(trained, task, batch):
    image = load_autoencoder(image_vae_source(trained).path())
    pixels = rearrange(batch.frames, "b f c h w -> (b f) c h w")
    rebuilt = image.decode(image.encode(pixels).latent_dist.mode()).sample
    found = task.losses(task.network, batch, StackedGenerator([torch.Generator().manual_seed(2)]))
    made = rebuilt.reshape(batch.frames.shape)
    moved = (made[:, 1:] - made[:, :-1]) - (batch.frames[:, 1:] - batch.frames[:, :-1])
    expected = {
        "pixels": (rebuilt - pixels).abs().mean(),
        "squared": (rebuilt - pixels).square().mean(),
        "gradient": image_gradient_loss(rebuilt, pixels),
        "perceptual": perceptual_distance(task.image_encoder, rebuilt, pixels),
        "temporal": moved.abs().mean(),
        "flicker": (made[:, 1:] - made[:, :-1]).abs()[still_in(batch.frames)].mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    weights = {
        "squared": 1.5,
        "gradient": 0.7,
        "perceptual": 0.3,
        "temporal": 2.5,
        "flicker": 3.5,
    }
    changes = {f"{name}_weight": weight for name, weight in weights.items()}
    weighed = task_of(with_settings(trained, max_latent_noise=0.0, **changes), "video_vae")
    loss = weighed.losses(
        weighed.network, batch, StackedGenerator([torch.Generator().manual_seed(2)])
    )["loss"]
    total = expected["pixels"] + sum(weights[name] * expected[name] for name in weights)
    torch.testing.assert_close(loss, total, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("clean", "common"), [(0.0, 0.3), (0.5, 0.0), (1.0, 0.8)])
def test_noise_has_the_sampled_level_and_some_clips_have_none(trained, batch, clean, common):
    changes = {"max_latent_noise": 0.7, "clean_prob": clean, "common_latent_noise": common}
    task = task_of(with_settings(trained, **changes), "video_vae")
    image = load_autoencoder(image_vae_source(trained).path())
    draws = StackedGenerator([torch.Generator().manual_seed(2)])
    levels = 0.7 * draws.uniform(len(batch.captions))
    levels[draws.uniform(len(levels)) < clean] = 0
    pixels = rearrange(batch.frames, "b f c h w -> (b f) c h w")
    code = image.encode(pixels).latent_dist.mode()
    noise = (1 - common) ** 0.5 * draws.normal(code.shape)
    noise += common**0.5 * draws.normal((*code.shape[:2], 1, 1))
    noise = noise.unflatten(0, (len(levels), -1))
    further = levels[:, None, None, None, None] / image.config.scaling_factor * noise
    rebuilt = image.decode(code + further.flatten(0, 1)).sample
    found = task.losses(task.network, batch, StackedGenerator([torch.Generator().manual_seed(2)]))
    torch.testing.assert_close(
        found["pixels"], (rebuilt - pixels).abs().mean(), atol=1e-5, rtol=1e-4
    )


def test_temporal_differences_do_not_cross_clips(task, batch):
    """Static clips of other colours."""
    still = batch.frames[:, :1].expand(-1, FRAMES, -1, -1, -1).clone()
    still[1] *= -1
    found = task.losses(
        task.network, replace(batch, frames=still), StackedGenerator([torch.Generator()])
    )
    assert found["temporal"] < 1e-6


def test_learning_rates_are_those_of_the_recipe(trained):
    recipe = with_settings(trained, pretrained_lr_scale=0.25)
    task = task_of(recipe, "video_vae")
    network = task.network
    optimizer = build_optimizer(network, recipe.video_vae, task.lr_scale)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in network.named_parameters():
        if name.startswith("encoder"):
            assert id(parameter) not in rates
        else:
            expected = 1e-3 if "temporal" in name else 0.25e-3
            assert rates[id(parameter)] == pytest.approx(expected)


def test_learns_to_reduce_flicker_from_earlier_frames(trained):
    """With frozen image weights, only attention to earlier frames can reduce flicker."""
    others = dict.fromkeys(("perceptual_weight", "squared_weight", "gradient_weight"), 0.0)
    changes = {"temporal_weight": 4.0, "max_latent_noise": 0.2, "clean_prob": 0.0}
    recipe = with_settings(trained, **others, **changes)
    task = task_of(recipe, "video_vae")
    # the image decoder has learnt so little that nothing of its features reaches the pixels
    torch.nn.init.normal_(task.network.decoder[-2].weight, std=0.1)
    parameters = [
        parameter.requires_grad_("temporal" in name)
        for name, parameter in task.network.named_parameters()
    ]
    frames = task.batches.get_batch(1).frames[:, :1].expand(-1, FRAMES, -1, -1, -1).contiguous()
    batch = replace(task.batches.get_batch(1), frames=frames)
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=0.02)
    history = []
    for step in range(60):
        losses = task.losses(
            task.network, batch, StackedGenerator([torch.Generator().manual_seed(step % 10)])
        )
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(float(losses["temporal"]))
    assert sum(history[-10:]) < 0.9 * sum(history[:10])


def test_the_dry_run_counts_its_cost(trained, task):
    one, *_, last = estimate_run(trained)
    assert (last.name, last.updates, last.samples) == ("video_vae", 4, 12)
    assert last.parameters == sum(parameter.numel() for parameter in task.network.parameters())
    # all frames of a clip, and the attention on top
    assert FRAMES * one.gflops < last.gflops < 2 * FRAMES * one.gflops


def test_the_exported_decoder_uses_earlier_frames(trained, tmp_path):
    export(trained.output, tmp_path / "model", "fp32")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["vae"] == ["magicvideo", "VideoPatchAutoencoder"]
    pipeline = MagicVideoPipeline.from_pretrained(tmp_path / "model")
    own = load_autoencoder(component_source(trained, "vae").path())
    latents = torch.randn(1, 9, 5, 3, 3)
    found = pipeline.decode(latents)
    torch.testing.assert_close(found, decode_latents(own, latents, 2), atol=1e-5, rtol=0)
    apart = torch.cat([pipeline.decode(latents[:, [place]]) for place in range(9)], dim=1)
    torch.testing.assert_close(apart[:, 0], found[:, 0], atol=1e-5, rtol=0)
    assert (apart[:, 1:] - found[:, 1:]).abs().max() > 1e-4

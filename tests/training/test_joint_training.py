"""The text encoder trained with the denoiser, mixed batches, and several EMA weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import STAGES, report_to, task_of, tiny_values

from magicvideo.data.manifest import read_manifest, write_manifest
from magicvideo.data.shards.dataset import EncodedBatch
from magicvideo.diffusion.noise import per_sample_generators
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import encode_frames
from magicvideo.models.pretrained_encoders import resolve_frozen_encoders
from magicvideo.rng import StackedGenerator
from magicvideo.training.dry_run import estimate_run
from magicvideo.training.export import export
from magicvideo.training.loader import MixedBatch
from magicvideo.training.optim import build_optimizer
from magicvideo.training.recipe import Recipe, parse_recipe
from magicvideo.training.resolve import plan_stage
from magicvideo.training.run import train

ENCODERS = ["vae", "text_encoder", "tokenizer", "image_encoder"]


def joint_recipe(model, prepared, output, *, image=None, **keyframes):
    values = tiny_values(prepared, output)
    for name in STAGES:
        if name not in ("image", "keyframes"):
            del values[name]
    values["image"] |= image or {}
    values["keyframes"] |= {"image_condition": 0.0, **keyframes}
    return Recipe.model_validate({**values, "init_from": str(model), "init_components": ENCODERS})


def weights_of(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def test_the_text_encoder_is_trained_passed_to_the_next_stage_and_exported(
    model, prepared, tmp_path
):
    rates = {"text_encoder_learning_rate": 2e-3}
    recipe = joint_recipe(model, prepared, tmp_path / "run", image=rates, **rates)
    train(recipe)
    run, begun = tmp_path / "run", weights_of(model / "text_encoder")
    after_image = weights_of(run / "image" / "output" / "text_encoder")
    after_clips = weights_of(run / "keyframes" / "output" / "text_encoder")
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    name = name if name in begun else name.removeprefix("text_model.")
    first = (after_image[name] - begun[name]).abs().max()
    second = (after_clips[name] - after_image[name]).abs().max()
    assert 0 < first < 0.02
    # the second stage begins with what the first one learned
    assert 0 < second < 0.02
    plan = plan_stage(recipe, "keyframes")
    assert plan.encoders.text_encoder.stage == "image"
    assert plan_stage(recipe, "image").encoders.text_encoder.stage is None
    export(run, tmp_path / "model", "fp32")
    exported = weights_of(tmp_path / "model" / "text_encoder")
    assert all(torch.equal(exported[key], after_clips[key]) for key in after_clips)
    words = (tmp_path / "model" / "words.txt").read_text().split()
    assert set((model / "words.txt").read_text().split()) <= set(words)


def test_a_run_that_trains_the_text_encoder_resumes_exactly(model, prepared, tmp_path):
    def run(output, steps):
        changes = {"steps": steps, "lr_decay_ratio": 0.0, "text_encoder_learning_rate": 1e-3}
        changes |= {"frame_batch_size": 5}
        recipe = joint_recipe(model, prepared, output, **changes)
        values = recipe.model_copy(update={"image": None})
        train(values)
        return {
            f"{part}/{key}": tensor
            for part in ("unet", "text_encoder")
            for key, tensor in weights_of(output / "keyframes" / "output" / part).items()
        }

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4)
    assert list(whole) == list(parts)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_text_encoder_has_its_own_learning_rate(optimizer, model, prepared, tmp_path):
    rates = {"text_encoder_learning_rate": 3e-4, "optimizer": optimizer}
    task = task_of(joint_recipe(model, prepared, tmp_path, image=rates), "image")
    built = build_optimizer(task.network, task.config, task.lr_scale)
    text = {id(p) for p in task.network.text_encoder.parameters()}
    rates = {group["lr"] for group in built.param_groups for p in group["params"] if id(p) in text}
    assert max(rates) == pytest.approx(3e-4)
    assert min(rates) == pytest.approx(3e-4)
    assert not any(
        group.get("use_muon") and any(id(p) in text for p in group["params"])
        for group in built.param_groups
    )
    frozen = task_of(joint_recipe(model, prepared, tmp_path), "image")
    assert frozen.network.text_encoder is None


def test_a_frozen_and_a_trained_text_encoder_have_the_same_first_loss(model, prepared, tmp_path):
    losses = []
    for rate in (0.0, 1e-3):
        image = {"text_encoder_learning_rate": rate}
        task = task_of(joint_recipe(model, prepared, tmp_path, image=image), "image")
        draws = per_sample_generators(0, 3, "test")
        losses.append(task.losses(task.network, task.batches.get_batch(0), draws)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_lora_training_refuses_to_train_the_text_encoder(model, prepared, tmp_path):
    recipe = joint_recipe(model, prepared, tmp_path, text_encoder_learning_rate=1e-3, lora={})
    alone = recipe.model_copy(update={"image": None, "init_components": None})
    with pytest.raises(UserError, match=r"does not go with keyframes\.lora"):
        plan_stage(alone, "keyframes")


def test_single_frames_and_clips_are_trained_together(model, prepared, tmp_path):
    recipe = joint_recipe(model, prepared, tmp_path, frame_batch_size=5)
    task = task_of(recipe.model_copy(update={"image": None}), "keyframes")
    batch = task.batches.get_batch(1)
    assert isinstance(batch, MixedBatch)
    assert batch.clips.frames.shape[:2] == (3, 4)
    assert batch.single_frames.frames.shape[:2] == (5, 1)
    assert len(batch.clip_ids) == 8
    losses = task.losses(task.network, batch, per_sample_generators(3, 3, "test"))
    assert losses["loss"].item() == pytest.approx(
        losses["clip_loss"].item() + losses["frame_loss"].item()
    )
    # the part of the clips is what a batch without frames has
    plain = task.losses(task.network, batch.clips, per_sample_generators(3, 3, "test"))
    assert plain["loss"].item() == pytest.approx(losses["clip_loss"].item())
    # no part of the temporal attention learns from a single frame of its own
    task.network.zero_grad()
    losses["frame_loss"].backward()
    assert task.network.unet.conv_in.weight.grad.abs().max() > 0


def test_spawned_generators_do_not_depend_on_how_a_batch_is_split():
    def spawn(samples, count):
        streams = [torch.Generator().manual_seed(i) for i in samples]
        return StackedGenerator(streams).spawn(count).uniform(count)

    whole = spawn(range(4), 6)
    assert torch.equal(torch.cat([spawn([0, 1], 3), spawn([2, 3], 3)]), whole)
    assert whole.unique().numel() == 6


def hold_out(prepared, folder):
    """Link a prepared folder whose last two clips are held out."""
    folder.mkdir()
    for path in prepared.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "manifest.jsonl").unlink()
    records = read_manifest(prepared)
    held = [clip.model_copy(update={"split": "heldout"}) for clip in records[-2:]]
    write_manifest(folder, [*records[:-2], *held])
    return folder


def test_the_ema_weights_with_the_best_held_out_loss_are_kept(model, prepared, tmp_path):
    data = hold_out(prepared, tmp_path / "data")
    image = {"steps": 12, "ema_decay": 0.1, "extra_ema_decays": [0.3, 0.9]}
    recipe = joint_recipe(model, data, tmp_path / "run", image=image)
    said = []
    train(recipe, "image", report_to(said.append))
    folder = tmp_path / "run" / "image"
    about = json.loads((folder / "output" / "stage.json").read_text())["averages"]
    losses = about["heldout_loss"]
    assert set(losses) == {"0.1", "0.3", "0.9"}
    assert len(set(losses.values())) == 3
    assert losses[f"{about['kept']:g}"] == min(losses.values())
    others = {path.name for path in (folder / "averages").iterdir()}
    assert others == set(losses) - {f"{about['kept']:g}"}
    assert any("held-out loss of the averages" in line for line in said)
    kept = weights_of(folder / "output" / "unet")
    for name in others:
        other = weights_of(folder / "averages" / name / "unet")
        assert any(not torch.equal(kept[key], other[key]) for key in kept)
    # a checkpoint has all averages, and a longer run goes on from it
    longer = recipe.image.model_copy(update={"steps": 14})
    train(recipe.model_copy(update={"image": longer}), "image", report_to(said.append))
    assert "image: resumes from step 12 of 14" in said
    changed = recipe.image.model_copy(update={"steps": 16, "extra_ema_decays": (0.5,)})
    with pytest.raises(UserError, match="extra_ema_decays was"):
        train(recipe.model_copy(update={"image": changed}), "image")


def test_several_ema_decays_need_held_out_clips_and_must_differ(model, prepared, tmp_path):
    recipe = joint_recipe(model, prepared, tmp_path / "run", image={"extra_ema_decays": [0.9]})
    with pytest.raises(UserError, match="no clip in validation or heldout"):
        train(recipe, "image")
    values = tiny_values(prepared, tmp_path)
    values["image"]["extra_ema_decays"] = [0.9, 0.9]
    with pytest.raises(UserError, match="must differ from each other"):
        parse_recipe(values, "tiny")


def test_a_dry_run_counts_frames_text_encoder_and_averages(model, prepared, tmp_path):
    rates = {"text_encoder_learning_rate": 1e-3}
    plain, _ = estimate_run(joint_recipe(model, prepared, tmp_path))
    _, clips = estimate_run(joint_recipe(model, prepared, tmp_path))
    joint, mixed = estimate_run(
        joint_recipe(
            model,
            prepared,
            tmp_path,
            image={**rates, "extra_ema_decays": [0.9]},
            frame_batch_size=6,
        )
    )
    encoders = resolve_frozen_encoders(model).load()
    text = sum(p.numel() for p in encoders.text_encoder.parameters())
    assert joint.trained == plain.trained + text
    assert joint.memory.weights == plain.memory.weights  # it is there once
    assert joint.memory.ema == 2 * (plain.memory.ema + 4 * text)
    assert mixed.training_gflops > 1.2 * clips.training_gflops


def test_a_trained_text_encoder_uses_the_captions_of_shards_and_not_their_stored_tokens(
    model, prepared, tmp_path
):
    image = {"text_encoder_learning_rate": 1e-3}
    task = task_of(joint_recipe(model, prepared, tmp_path, image=image), "image")
    plain = task.batches.get_batch(0)
    latents = encode_frames(task.encoders.vae, plain.frames)
    encoded = EncodedBatch(
        latents,
        embeddings=torch.zeros(3, 1, 14),
        tokens=torch.full((3, 16, 14), torch.nan),
        fps=plain.fps,
        captions=plain.captions,
        clip_ids=plain.clip_ids,
    )
    found, expected = (
        task.losses(task.network, batch, per_sample_generators(0, 3, "test"))["loss"].item()
        for batch in (encoded, plain)
    )
    assert found == pytest.approx(expected, rel=1e-5)

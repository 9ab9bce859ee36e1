"""Stage `distill`: its target, its teacher, and the resulting model."""

import json

import pytest
import torch
import yaml
from networks import make_inputs, make_unet, randomise
from safetensors.torch import load_file
from tiny_recipe import SHARED, task_of, tiny_values

from magicvideo import cli
from magicvideo.diffusion.noise import per_sample_generators
from magicvideo.errors import UserError
from magicvideo.models.unet import FlowMapUNet, VideoUNet
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.training.dry_run import estimate_stage
from magicvideo.training.export import export
from magicvideo.training.recipe import Recipe, parse_recipe
from magicvideo.training.resolve import plan_stage
from magicvideo.training.run import train


def values_of(model, prepared, output, **distill):
    return {
        "name": "distilled",
        "data": str(prepared),
        "output": str(output),
        "init_from": str(model),
        "seed": 4,
        "distill": {**SHARED, "steps": 4, "preview_every": 3, **distill},
    }


def recipe_of(model, prepared, output, **distill):
    return Recipe.model_validate(values_of(model, prepared, output, **distill))


def losses_of(task, size=6):
    batch = task.batches.get_other_batch(0, 0, size)
    losses = task.losses(task.network, batch, per_sample_generators(0, size, "test"))
    return {name: value.item() for name, value in losses.items()}


@torch.no_grad()
def test_the_embedding_of_the_interval_is_zero_at_the_start_and_then_is_not():
    teacher = make_unet()
    settings = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    student = VideoUNet(**{**settings, "flow_map": True})
    student.load_state_dict(teacher.state_dict(), strict=False)
    latents, timestep, tokens, fps = make_inputs()
    expected = teacher(latents, timestep, tokens, fps).sample
    for target in (None, 0, -1, 17):
        found = student(latents, timestep, tokens, fps, target_timestep=target).sample
        torch.testing.assert_close(found, expected)
    randomise(student)
    near, far = (
        student(latents, timestep, tokens, fps, target_timestep=target).sample
        for target in (timestep, timestep // 2)
    )
    assert (near - far).abs().max() > 1e-3
    # by default the target is the timestep itself
    torch.testing.assert_close(student(latents, timestep, tokens, fps).sample, near)
    with pytest.raises(ValueError, match="flow_map=True"):
        teacher(latents, timestep, tokens, fps, target_timestep=3)


@torch.no_grad()
def test_given_frames_are_cached_for_a_flow_map_too():
    network = randomise(make_unet(flow_map=True)).eval()
    latents, _, tokens, fps = make_inputs()
    unet = FlowMapUNet(network, lambda step: int(step) // 3)
    steps = torch.full(latents.shape[:2], 600)
    steps[:, :1] = 0
    whole = unet(latents, steps, tokens, fps).sample[:, 1:]
    cache = unet.cache_frames(latents[:, :1], tokens, fps)
    rest = unet(latents[:, 1:], torch.full((len(latents),), 600), tokens, fps, past=cache).sample
    torch.testing.assert_close(rest, whole, atol=1e-4, rtol=1e-4)


def test_at_the_start_the_direction_is_the_teachers(tiny_model, prepared, tmp_path):
    """At equal times and without guidance, the student has no error; otherwise it has one."""
    alone = {"diagonal_prob": 1.0, "to_data_prob": 0.0}
    task = task_of(recipe_of(tiny_model, prepared, tmp_path, guidance_scale=1, **alone), "distill")
    assert losses_of(task)["loss"] < 1e-9
    guided = task_of(recipe_of(tiny_model, prepared, tmp_path, **alone), "distill")
    assert guided.guidance_scale == 4.0
    assert losses_of(guided)["velocity_loss"] > 1e-4
    over = {"diagonal_prob": 0.0, "to_data_prob": 0.5}
    task = task_of(recipe_of(tiny_model, prepared, tmp_path, guidance_scale=1, **over), "distill")
    losses = losses_of(task)
    assert losses["velocity_loss"] == 0
    assert losses["map_loss"] > 1e-4


def test_given_frames_are_unchanged_and_have_no_loss(tiny_model, prepared, tmp_path):
    given = {"given_frames_prob": 1.0, "max_given_frames": 3, "mode_weight_limit": 8.0}
    task = task_of(recipe_of(tiny_model, prepared, tmp_path, **given), "distill")
    seen = []

    def record(_network, inputs, keywords):
        seen.append((*inputs[:2], keywords["target_timestep"]))

    task.network.register_forward_pre_hook(record, with_kwargs=True)
    assert losses_of(task)["loss"] > 0
    for noisy, steps, target in seen:
        clean = steps == 0
        assert clean[:, 0].all()
        assert not clean[:, 3:].any()
        assert noisy.shape[:2] == steps.shape
        assert (target[:, None] <= steps + 1e-3).logical_or(clean).all()


def test_a_stopped_distillation_ends_like_an_uninterrupted_one(tiny_model, prepared, tmp_path):
    def run(output, steps):
        changes = {"steps": steps, "lr_decay_ratio": 0.0, "optimizer": "muon"}
        train(recipe_of(tiny_model, prepared, output, **changes))
        return load_file(
            output / "distill" / "output" / "unet" / "diffusion_pytorch_model.safetensors"
        )

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4)
    assert any("interval_embedding" in name for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def command(*arguments):
    assert cli.run(list(map(str, arguments))) == 0


def test_one_command_distils_a_model_folder_that_generates_videos(tiny_model, prepared, tmp_path):
    recipe, model = tmp_path / "distil.yaml", tmp_path / "model"
    values = values_of(tiny_model, prepared, tmp_path / "run", sampling_steps=2)
    recipe.write_text(yaml.safe_dump(values))
    command("train", recipe)
    assert (tmp_path / "run" / "distill" / "samples" / "step-00000003.png").is_file()
    export(tmp_path / "run", model, "fp32")
    index = json.loads((model / "model_index.json").read_text())
    before = json.loads((tiny_model / "model_index.json").read_text())
    assert index["noise_correlation"] == before["noise_correlation"]
    defaults = index["generation_defaults"]
    assert (defaults["scheduler"], defaults["num_inference_steps"]) == ("flow_map", 2)
    assert defaults["fps"] == before["generation_defaults"]["fps"]
    video = tmp_path / "cat.mp4"
    arguments = ("--model", model, "--steps", 4, "--seed", 1, "--output", video)
    command("generate", "a cat", *arguments)
    assert video.stat().st_size > 500

    pipeline = MagicVideoPipeline.from_pretrained(model)
    calls = []
    pipeline.unet.register_forward_pre_hook(
        lambda _network, inputs, keywords: calls.append(
            (len(inputs[0]), int(inputs[1][0]), keywords["target_timestep"])
        ),
        with_kwargs=True,
    )
    made = pipeline("a cat", seed=1, num_inference_steps=4, stages=("keyframes",)).videos[0]
    assert made.frames.isfinite().all()
    # a step is one evaluation of one video
    assert calls == [(1, 999, 749), (1, 749, 499), (1, 499, 249), (1, 249, -1)]
    with pytest.raises(UserError, match="distilled model already includes guidance"):
        pipeline("a cat", guidance_scale=3.0)
    with pytest.raises(UserError, match="is distilled and needs flow_map"):
        pipeline("a cat", scheduler="ddim")
    teacher = MagicVideoPipeline.from_pretrained(tiny_model)
    with pytest.raises(UserError, match="it needs a distilled model"):
        teacher("a cat", scheduler="flow_map")
    with pytest.raises(UserError, match="is already distilled"):
        plan_stage(recipe_of(model, prepared, tmp_path / "again"), "distill")


def test_a_full_recipe_distils_its_own_keyframe_network_and_interpolates_with_it(
    prepared, tmp_path
):
    values = tiny_values(prepared, tmp_path)
    values["unet"]["motion_condition"] = True
    values["distill"] = {**SHARED, "steps": 2}
    recipe = Recipe.model_validate(values)
    plan = plan_stage(recipe, "distill")
    assert plan.teacher.stage == "keyframes"
    assert plan.unet_config["flow_map"]
    # the frames between are learned from the network that is not distilled
    assert plan_stage(recipe, "interpolation").unet.stage == "keyframes"
    names = list(recipe.stages())
    assert names.index("distill") == names.index("keyframes") + 1
    estimate = estimate_stage(plan)
    assert estimate.new == sum(
        p.numel() for p in VideoUNet(**plan.unet_config).interval_embedding.parameters()
    )


def test_fractions_above_one_and_lora_are_refused(tiny_model, prepared, tmp_path):
    with pytest.raises(UserError, match="are more than 1 together"):
        parse_recipe(
            values_of(tiny_model, prepared, tmp_path, diagonal_prob=0.8, to_data_prob=0.4), "r"
        )
    values = values_of(tiny_model, prepared, tmp_path)
    values["keyframes"] = {**SHARED, "steps": 2, "image_condition": 0.0, "lora": {}}
    with pytest.raises(UserError, match=r"keyframes\.lora and distill"):
        plan_stage(Recipe.model_validate(values), "distill")

"""The dry run: the sizes of the real networks, without data and weights."""

import json
from pathlib import Path

import pytest
import yaml
from diffusers import AutoencoderKL
from tiny_recipe import SHARED, STAGES, task_of, tiny_values

from magicvideo import cli
from magicvideo.cli import run
from magicvideo.data.manifest import FrameSize
from magicvideo.errors import UserError
from magicvideo.models.flops import count_parameters
from magicvideo.models.unet import VideoUNet
from magicvideo.training.dry_run import clip_bytes, estimate_run, estimate_stage
from magicvideo.training.recipe import HardwareConfig, Recipe, read_recipe
from magicvideo.training.resolve import PRESETS, frame_size, plan_stage, unet_config
from magicvideo.training.tasks.autoencoder import AutoencoderTask

PAPER = Path(__file__).parents[2] / "recipes" / "paper.yaml"
SIDE, FRAMES = 64, 3
SIZE = FrameSize(SIDE, SIDE)


def recipe_of(tmp_path, **changes):
    """A smaller version of the paper's recipe, with folders that do not exist."""
    values = {
        "name": "small",
        "data": str(tmp_path / "data"),
        "output": str(tmp_path / "run"),
        "init_from": str(tmp_path / "start"),
        "init_preset": "stable-diffusion-1",
        "size": SIDE,
        "unet": {
            "block_out_channels": [32, 64],
            "attention_levels": [True, False],
            "attention_heads": 8,
            "norm_num_groups": 32,
            "num_frames": FRAMES,
        },
        "keyframes": {
            **SHARED,
            "steps": 10,
            "image_condition": 0.0,
            "gradient_accumulation_steps": 2,
        },
    }
    return Recipe.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def planned(trained):
    return {row.name: row for row in estimate_run(trained)}


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_those_of_the_real_network(stage, planned, trained):
    network = task_of(trained, stage).network
    row = planned[stage]
    assert row.parameters == count_parameters(network)
    assert row.trained == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert 0 < row.gflops < row.training_gflops


def test_new_and_copied_parameters_are_distinguished(planned):
    assert planned["autoencoder"].pretrained == planned["image"].pretrained == 0
    image = planned["image"].trained
    for stage in ("unsupervised", "keyframes"):
        assert planned[stage].pretrained == image
        assert planned[stage].new == planned[stage].parameters - image > 0
    assert 0 < planned["interpolation"].new < planned["interpolation"].pretrained


def test_neither_data_nor_weights_are_needed(tmp_path):
    (row,) = estimate_run(recipe_of(tmp_path))
    assert (row.name, row.updates, row.samples) == ("keyframes", 10, 10 * 2 * 3)
    assert list(tmp_path.iterdir()) == []
    assert row.pretrained > row.new > 768**2  # new is, beside others, the picture's linear layer


def test_the_memory_estimate_equals_a_manual_count(tmp_path):
    (single,) = estimate_run(recipe_of(tmp_path))
    trained = single.trained
    assert trained == single.parameters
    assert single.memory.gradients == single.memory.ema == 4 * trained
    assert single.memory.optimizer == 8 * trained
    frozen = single.memory.weights // 4 - trained
    # Stable Diffusion's autoencoder and both towers of CLIP ViT-L/14
    assert frozen == 83_653_863 + 123_060_480 + 303_966_208
    assert single.memory.total == sum(vars(single.memory).values())
    mixed = {**SHARED, "steps": 10, "image_condition": 0.0, "mixed_precision": "bf16"}
    machine = {"gpus": 7, "tflops": 100}
    (half,) = estimate_run(
        recipe_of(tmp_path, keyframes={**mixed, "batch_size": 6}, hardware=machine)
    )
    assert half.memory.weights == single.memory.weights + 2 * trained
    assert half.memory.gradients == 2 * single.memory.gradients
    # twice the batch, in half the bytes, but for what is counted in bytes
    assert half.memory.activations == pytest.approx(single.memory.activations, rel=0.01)


def test_the_estimates_of_time_and_disk_equal_a_manual_count(tmp_path):
    (row,) = estimate_run(recipe_of(tmp_path))
    machine = HardwareConfig(gpus=5, tflops=2.0, utilisation=0.25)
    assert row.hours(machine) == pytest.approx(60 * row.training_gflops * 1e9 / 0.5e12 / 3600)
    assert clip_bytes(recipe_of(tmp_path)) == (FRAMES * 4 * 8 * 8 * 2, FRAMES * 3 * SIDE * SIDE)


def write_settings(folder, name, **settings):
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text(json.dumps(settings))


def test_a_folder_with_only_configurations_is_enough(tmp_path):
    start = tmp_path / "start"
    vae = {"block_out_channels": (8, 12), "norm_num_groups": 4, "latent_channels": 5}
    vae["down_block_types"] = ("DownEncoderBlock2D",) * 2
    vae["up_block_types"] = ("UpDecoderBlock2D",) * 2
    AutoencoderKL(**vae).save_config(start / "vae")
    tower = {"hidden_size": 20, "intermediate_size": 22, "num_attention_heads": 2}
    tower["num_hidden_layers"] = 1
    write_settings(start, "text_encoder", **tower, max_position_embeddings=13, vocab_size=600)
    write_settings(start, "image_encoder", **tower, projection_dim=14, image_size=16, patch_size=8)
    write_settings(start, "unet", attention_head_dim=8, norm_num_groups=32)
    recipe = recipe_of(tmp_path)
    config = unet_config(recipe, SIZE)
    assert (config["in_channels"], config["sample_size"]) == (5, SIDE // 2)
    assert config["cross_attention_dim"] == 20
    (row,) = estimate_run(recipe)
    assert row.new + row.pretrained == row.trained
    (start / "unet" / "config.json").write_text('{"attention_head_dim": 4, "norm_num_groups": 32}')
    with pytest.raises(UserError, match=r"unet\.attention_heads is 8 in the recipe and 4 in"):
        estimate_run(recipe)
    (start / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match="has no sizes of vae"):
        estimate_run(recipe)


def test_a_recipe_can_start_from_a_network_of_stable_diffusion_2(tmp_path):
    """It has heads by level and linear projections, and folders store both."""
    start = tmp_path / "start"
    AutoencoderKL().save_config(start / "vae")
    tower = {"hidden_size": 20, "intermediate_size": 22, "num_attention_heads": 2}
    write_settings(start, "text_encoder", **tower, num_hidden_layers=1, vocab_size=600)
    write_settings(start, "image_encoder", **tower, num_hidden_layers=1, projection_dim=14)
    stored = {"attention_head_dim": [2, 4], "use_linear_projection": True, "norm_num_groups": 32}
    write_settings(start, "unet", **stored)
    unet = recipe_of(tmp_path).unet.model_dump()
    fitting = {**unet, "attention_heads": [2, 4], "linear_projection": True}
    recipe = recipe_of(tmp_path, unet=fitting)
    network = VideoUNet(**unet_config(recipe, SIZE))
    attention = network.down_blocks[0].attentions[0]
    assert attention.proj_in.weight.ndim == 2
    assert attention.transformer_blocks[0].attn1.num_heads == 2
    assert network.mid_block.attentions[0].transformer_blocks[0].attn1.num_heads == 4
    for changes, sentence in (
        ({"attention_heads": 2}, r"attention_heads is 2 in the recipe and \[2, 4\] in the model"),
        ({"attention_heads": [2, 4, 4]}, r"attention_heads=\(2, 4, 4\) does not fit 2 levels"),
        ({"linear_projection": False}, "linear_projection is False in the recipe and True in"),
    ):
        with pytest.raises(UserError, match=sentence):
            unet_config(recipe_of(tmp_path, unet={**fitting, **changes}), SIZE)


def test_unknown_values_are_named(tmp_path, prepared):
    with pytest.raises(UserError, match="is not a prepared data set"):
        estimate_run(recipe_of(tmp_path, size=None))
    with pytest.raises(UserError, match="has no sizes of vae"):
        estimate_run(recipe_of(tmp_path, init_preset=None))
    with pytest.raises(UserError, match="no stage that trains the component vae, and does not"):
        estimate_run(recipe_of(tmp_path, init_from=None))
    wrong = recipe_of(tmp_path, data=str(prepared))
    for ask in (estimate_run, lambda recipe: task_of(recipe, "keyframes")):
        with pytest.raises(UserError, match=r"have size 24, but the recipe has size=64"):
            ask(wrong)
    assert frame_size(recipe_of(tmp_path, data=str(prepared), size=None)) == (24, 24)


def test_the_interpolation_requires_one_kind_of_denoiser(tmp_path):
    values = tiny_values(tmp_path, tmp_path / "run") | {"size": 24}
    for change in ({"convolutions": "2+1d"}, {"spatial_attention": False}):
        recipe = Recipe.model_validate(values | {"unet": {**values["unet"], **change}})
        with pytest.raises(UserError, match="the stage interpolation, which needs a"):
            plan_stage(recipe, "interpolation")


def test_the_interpolation_may_attend_on_fewer_levels(tmp_path):
    values = tiny_values(tmp_path, tmp_path / "run") | {"size": 24}
    values["unet"] = values["unet"] | {"attention_levels": [True, True]}

    def planned(levels):
        stage = values["interpolation"] | {"attention_levels": levels}
        recipe = Recipe.model_validate(values | {"interpolation": stage})
        return estimate_stage(plan_stage(recipe, "interpolation"))

    assert planned([False, True]).parameters < planned(None).parameters
    assert planned([True, True]) == planned(None)
    with pytest.raises(UserError, match="attention_levels has 3 levels, and the denoiser 2"):
        planned([True, False, True])


def test_the_papers_recipe_is_stable_diffusions_network_and_process():
    recipe = read_recipe(PAPER, [])
    stages = ["unsupervised", "keyframes", "interpolation", "video_vae", "upscaler"]
    assert list(recipe.stages()) == stages
    config = unet_config(recipe, frame_size(recipe))
    unet = PRESETS["stable-diffusion-1"]["unet"]
    assert {name: config[name] for name in unet} == dict(unet)
    assert (config["sample_size"], config["num_frames"]) == (32, 16)
    noise = recipe.noise
    assert (noise.prediction_type, noise.beta_schedule) == ("epsilon", "scaled_linear")
    assert (noise.beta_start, noise.beta_end, noise.zero_terminal_snr) == (0.00085, 0.012, False)
    for stage in (recipe.unsupervised, recipe.keyframes):
        assert stage.learning_rate * stage.pretrained_lr_scale == pytest.approx(1e-5)
        assert (stage.condition_dropout, stage.ema_decay) == (0.1, 0.9999)
    assert (recipe.defaults.steps, recipe.defaults.guidance_scale) == (50, 7.5)


def test_a_dry_run_of_the_papers_recipe_prints_every_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    smaller = ("size=64", "unet.block_out_channels=[32,32,32,32]", "upscaler.model.widths=[8,8,8]")
    changes = [word for change in smaller for word in ("--set", change)]
    assert run(["train", str(PAPER), "--dry-run", *changes]) == 0
    shown = capsys.readouterr().out
    for text in ("activations", "GPU-hours", "on 64 GPUs of 312 TFLOPS", "10,000,000 clips"):
        assert text in shown
    for stage in ("unsupervised", "keyframes", "interpolation", "video_vae", "upscaler"):
        assert shown.count(f"│ {stage} ") == 4, stage


def test_the_command_prints_json_with_clips_passes_and_measured_times(prepared, tmp_path, capsys):
    values = tiny_values(prepared, tmp_path / "run")
    kept = {name: values[name] for name in ("name", "data", "output", "seed", "unet")}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(kept | {"autoencoder": values["autoencoder"]}))
    assert cli.run(["train", str(file), "--dry-run", "--json", "--scale", "3"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert (stage["name"], stage["clips"], stage["updates"]) == ("autoencoder", 7, 12)
    assert stage["passes"] == pytest.approx(12 * 3 / 7)
    assert 0 < stage["seconds_per_update"] < 60
    assert not (tmp_path / "run").exists()
    assert cli.run(["train", str(file), "--dry-run"]) == 0
    assert "passes" in capsys.readouterr().out


def test_the_dry_run_counts_the_losses_of_the_task(trained, monkeypatch):
    """A loss that computes twice as much is counted twice, because the real loss runs."""
    once = estimate_stage(plan_stage(trained, "autoencoder"))
    losses = AutoencoderTask.losses

    def twice(task, network, batch, generator):
        first = losses(task, network, batch, generator)["loss"]
        return {"loss": first + losses(task, network, batch, generator)["loss"]}

    monkeypatch.setattr(AutoencoderTask, "losses", twice)
    doubled = estimate_stage(plan_stage(trained, "autoencoder"))
    assert doubled.training_gflops == pytest.approx(2 * once.training_gflops)
    assert doubled.parameters == once.parameters

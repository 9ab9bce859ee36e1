"""The recipe of the second emoji model: its real sizes without data, and a toy run."""

import json

from test_joint_training import hold_out

from magicvideo.training.dry_run import estimate_stage
from magicvideo.training.export import export
from magicvideo.training.recipe import packaged_recipes, read_recipe
from magicvideo.training.resolve import plan_stage
from magicvideo.training.run import train

TOY = [
    "autoencoder.model.latent_channels=5",
    "autoencoder.model.widths=[6, 10]",
    "autoencoder.model.norm_num_groups=2",
    "autoencoder.batch_size=3",
    "clip.vocabulary_size=560",
    "clip.width=14",
    "clip.heads=2",
    "clip.text_layers=1",
    "clip.image_layers=1",
    "clip.batch_size=3",
    "unet.block_out_channels=[8, 12]",
    "unet.attention_heads=2",
    "unet.norm_num_groups=2",
    "unet.num_frames=4",
    "image.batch_size=3",
    "keyframes.frame_batch_size=3",
    "interpolation=null",
    "video_vae=null",
    "upscaler=null",
    *(f"{stage}.steps=2" for stage in ("autoencoder", "clip", "image", "keyframes")),
    *(f"{stage}.mixed_precision=no" for stage in ("autoencoder", "clip", "image", "keyframes")),
]


def test_its_denoiser_is_counted_without_data(tmp_path):
    assert {"emoji", "emoji-v2", "distill"} <= set(packaged_recipes())
    recipe = read_recipe(
        packaged_recipes()["emoji-v2"], [f"data={tmp_path}", "size=64", "keyframes.batch_size=1"]
    )
    estimate = estimate_stage(plan_stage(recipe, "keyframes"))
    assert 10e6 < estimate.trained < 30e6  # denoiser and text encoder


def test_one_command_trains_it_from_nothing(prepared, tmp_path):
    data = hold_out(prepared, tmp_path / "data")
    places = [f"data={data}", f"output={tmp_path / 'run'}", "tracker=none"]
    train(read_recipe(packaged_recipes()["emoji-v2"], [*places, *TOY]))
    export(tmp_path / "run", tmp_path / "model", "fp32")
    about = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert (about["noise_correlation"], about["noise_decay"]) == (0.89, 0.7)
    unet = json.loads((tmp_path / "model" / "unet" / "config.json").read_text())
    assert unet["motion_condition"]
    assert unet["motion_std"] != 1.0
    steps = json.loads((tmp_path / "model" / "training.json").read_text())["steps"]
    assert list(steps) == ["autoencoder", "clip", "image", "keyframes"]

"""A recipe that starts from a model: what it trains starts there, the rest is copied."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import SHARED, STAGES, task_of, tiny_values

from magicvideo.atomic_io import write_checksums
from magicvideo.errors import UserError
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.video_vae import VideoPatchAutoencoder
from magicvideo.training.dry_run import estimate_run
from magicvideo.training.export import export
from magicvideo.training.recipe import Recipe
from magicvideo.training.resolve import component_source, image_vae_source, plan_stages
from magicvideo.training.run import train


def starting(model, prepared, output, *stages, **changes):
    values = tiny_values(prepared, output)
    for name in STAGES:
        if name not in stages:
            del values[name]
    return Recipe.model_validate({**values, "init_from": str(model), **changes})


def weights(folder):
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def without(tensors, unwanted):
    return {name: tensor for name, tensor in tensors.items() if not unwanted(name)}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_autoencoder_starts_from_the_weights_and_the_scale(model, prepared, tmp_path):
    network = task_of(starting(model, prepared, tmp_path, "autoencoder"), "autoencoder").network
    # the model's is a video autoencoder, of which this stage trains the image part
    stored = weights(model / "vae")
    assert any("temporal" in name for name in stored)
    found = network.state_dict()
    assert not any("temporal" in name for name in found)
    assert_same(found, {name: stored[name] for name in stored if "temporal" not in name})
    fresh = task_of(Recipe.model_validate(tiny_values(prepared, tmp_path)), "autoencoder")
    assert network.config.scaling_factor == fresh.network.config.scaling_factor != 1.0


def test_the_video_autoencoder_starts_from_its_temporal_layers(model, prepared, tmp_path):
    recipe = starting(model, prepared, tmp_path, "video_vae")
    network = task_of(recipe, "video_vae").network
    assert_same(network.state_dict(), weights(model / "vae"))
    assert network.config.temporal_window_size == 4
    shown = network.temporal_mid.to_out.weight
    assert shown.abs().max() > 0
    sizes = estimate_run(recipe)[0]
    assert sizes.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_clip_starts_from_both_encoders_and_the_tokenizer(model, prepared, tmp_path):
    task = task_of(starting(model, prepared, tmp_path, "clip"), "clip")
    task.save(tmp_path)
    for name in ("text_encoder", "image_encoder"):
        assert_same(weights(tmp_path / name), weights(model / name))
    texts = [(folder / "tokenizer" / "tokenizer.json").read_text() for folder in (tmp_path, model)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("stage", ["unsupervised", "keyframes"])
def test_video_stages_start_from_the_denoiser(stage, model, prepared, tmp_path):
    network = task_of(starting(model, prepared, tmp_path, stage), stage).network
    assert_same(network.unet.state_dict(), weights(model / "unet"))
    assert_same(network.image_conditioner.state_dict(), weights(model / "image_conditioner"))


def test_the_image_stage_starts_from_the_image_layers(model, prepared, tmp_path):
    network = task_of(starting(model, prepared, tmp_path, "image"), "image").network
    stored = weights(model / "unet")
    found = network.unet.state_dict()
    assert not any("temporal" in name or "adaptor" in name for name in found)
    assert_same(found, {name: stored[name] for name in found})


def test_a_model_of_images_is_inflated(model, prepared, tmp_path):
    recipe = starting(model, prepared, tmp_path / "run", "image")
    train(recipe)
    export(recipe.output, tmp_path / "frames", "fp32")
    network = task_of(
        starting(tmp_path / "frames", prepared, tmp_path, "keyframes"), "keyframes"
    ).network
    stored, found = weights(tmp_path / "frames" / "unet"), network.unet.state_dict()
    new = {name for name in found if is_temporal_key(name)}
    assert_same({k: v for k, v in found.items() if k not in new}, without(stored, is_temporal_key))
    assert (found["fps_embedding.linear_2.weight"] == 0).all()
    assert any("temporal" in name for name in new)


def test_the_interpolator_starts_from_its_weights_and_keeps_its_scale(
    model, prepared, trained, tmp_path
):
    network = task_of(
        starting(model, prepared, tmp_path, "interpolation", seed=6), "interpolation"
    ).network
    assert_same(network.state_dict(), weights(model / "interpolator"))
    own = task_of(trained, "interpolation").network.config.residual_scale
    assert network.config.residual_scale == own


def test_a_run_of_one_stage_exports_a_whole_model(model, prepared, tmp_path):
    recipe = starting(model, prepared, tmp_path / "run", "keyframes")
    assert isinstance(task_of(recipe, "keyframes").encoders.vae, VideoPatchAutoencoder)
    train(recipe)
    export(recipe.output, tmp_path / "model", "fp32")
    for name in ("vae", "text_encoder", "image_encoder", "interpolator"):
        assert_same(weights(tmp_path / "model" / name), weights(model / name))
    before, after = (weights(folder / "unet") for folder in (model, tmp_path / "model"))
    assert not torch.equal(before["conv_in.weight"], after["conv_in.weight"])
    text = (tmp_path / "model" / "training.json").read_text()
    assert '"started_from"' in text
    assert (tmp_path / "model" / "words.txt").read_text() == (model / "words.txt").read_text()


def test_components_that_are_not_selected_are_initialised_randomly(model, prepared, tmp_path):
    parts = ["vae", "text_encoder", "tokenizer", "image_encoder"]
    convolutions = {**tiny_values(prepared, tmp_path)["unet"], "convolutions": "3d"}
    recipe = starting(
        model, prepared, tmp_path, "keyframes", init_components=parts, unet=convolutions
    )
    stored = weights(model / "unet")
    found = task_of(recipe, "keyframes").network.unet.state_dict()
    assert not torch.equal(found["conv_in.weight"], stored["conv_in.weight"])
    assert found.keys() - stored.keys() == {
        name.replace("weight", "temporal_weight")
        for name, tensor in found.items()
        if tensor.shape[-2:] == (3, 3) and "temporal" not in name
    }
    assert component_source(recipe, "vae").path() == model / "vae"
    assert estimate_run(recipe)[0].pretrained == 0
    with pytest.raises(UserError, match="no stage image or unsupervised or keyframes"):
        component_source(
            starting(model, prepared, tmp_path, "clip", init_components=parts), "unet"
        ).path()


def test_a_recipe_can_start_from_a_model_without_a_word_list(model, prepared, tmp_path):
    wordless = Path(shutil.copytree(model, tmp_path / "wordless"))
    (wordless / "words.txt").unlink()
    write_checksums(wordless)
    recipe = starting(wordless, prepared, tmp_path / "run", "keyframes")
    train(recipe)
    export(recipe.output, tmp_path / "model", "fp32")
    assert not (tmp_path / "model" / "words.txt").exists()


def test_other_sizes_are_refused_by_name(model, prepared, tmp_path):
    wider = {**tiny_values(prepared, tmp_path)["unet"], "block_out_channels": [8, 16]}
    recipe = starting(model, prepared, tmp_path, "keyframes", unet=wider)
    with pytest.raises(UserError, match=r"has the shape \[.+\] and the network \[.+\]"):
        task_of(recipe, "keyframes")
    clip = {**tiny_values(prepared, tmp_path)["clip"], **SHARED, "width": 10}
    recipe = starting(model, prepared, tmp_path, "clip", clip=clip)
    with pytest.raises(UserError, match="do not have the sizes of the recipe's clip"):
        task_of(recipe, "clip")
    recipe = starting(model, tmp_path / "none", tmp_path, "clip", size=48)
    with pytest.raises(UserError, match=r"sees squares of 24 pixels, .* 48; prepare .*--size 24"):
        plan_stages(recipe)


def test_a_folder_that_is_damaged_or_not_a_model_is_refused(model, prepared, tmp_path):
    with pytest.raises(UserError, match="is not a model folder"):
        train(starting(tmp_path, prepared, tmp_path, "keyframes"))
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        component_source(starting(copy, prepared, tmp_path, "keyframes"), "vae").path()


def test_a_component_that_no_stage_provides_is_named(prepared, tmp_path):
    values = tiny_values(prepared, tmp_path)
    del values["autoencoder"]
    with pytest.raises(UserError, match=r"no stage autoencoder, and no init_from whose model has"):
        image_vae_source(Recipe.model_validate(values)).path()
    del values["video_vae"]
    with pytest.raises(UserError, match=r"no stage autoencoder or video_vae, and no init_from"):
        component_source(Recipe.model_validate(values), "vae").path()


def test_the_output_interpolates_with_the_initial_weights(model, prepared, tmp_path):
    values = tiny_values(prepared, tmp_path)
    values["keyframes"]["weight_interpolation"] = 0.75
    only = {name: values[name] for name in values if name not in STAGES or name == "keyframes"}
    task = task_of(Recipe.model_validate({**only, "init_from": str(model)}), "keyframes")
    began = {name: weight.clone() for name, weight in task.network.unet.state_dict().items()}
    with torch.no_grad():
        for parameter in task.network.parameters():
            parameter.add_(1.0)
    learnt = {name: weight.clone() for name, weight in task.network.unet.state_dict().items()}
    task.save(tmp_path / "output")
    found = weights(tmp_path / "output" / "unet")
    for name, weight in found.items():
        expected = (
            learnt[name] if is_temporal_key(name) else 0.75 * began[name] + 0.25 * learnt[name]
        )
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-5)
    assert_same(task.network.unet.state_dict(), learnt)

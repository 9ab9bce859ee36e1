"""Training adapters of a finished model, or only the temporal layers."""

import json
import os
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_recipe import STAGES, report_to, task_of, tiny_values

from magicvideo.atomic_io import hash_folder
from magicvideo.errors import UserError
from magicvideo.models.flops import count_parameters
from magicvideo.models.inflate import is_temporal_key
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.training.dry_run import estimate_run
from magicvideo.training.export import export
from magicvideo.training.optim import build_optimizer
from magicvideo.training.recipe import Recipe
from magicvideo.training.run import train
from magicvideo.training.tasks.denoiser import LoraDenoiser
from magicvideo.training.trainer import Interrupted

RANK, ALPHA = 2, 3.0
KINDS = ["attention", "feed_forward", "projections", "convolutions", "temporal"]
LORA = {"rank": RANK, "alpha": ALPHA, "targets": KINDS}


def recipe_of(model, prepared, output, **changes):
    values = tiny_values(prepared, output)
    keyframes = {**values["keyframes"], "lora": LORA, "preview_every": 4, **changes}
    for name in STAGES:
        del values[name]
    return Recipe.model_validate({**values, "init_from": str(model), "keyframes": keyframes})


@pytest.fixture(scope="module")
def adapted(model, prepared, tmp_path_factory):
    """A recipe whose LoRA is trained; do not write into its output."""
    recipe = recipe_of(model, prepared, tmp_path_factory.mktemp("adapted"))
    train(recipe)
    return recipe


def lora_of(recipe):
    return recipe.output / "keyframes" / "output" / "lora" / "pytorch_lora_weights.safetensors"


def test_a_stopped_run_ends_like_an_uninterrupted_run(adapted, model, prepared, tmp_path):
    recipe = recipe_of(model, prepared, tmp_path)

    def stop_at_step_2(line):
        if line.startswith("keyframes 2/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(recipe, None, report_to(stop_at_step_2))
    (checkpoint,) = (tmp_path / "keyframes" / "checkpoints").glob("step-*")
    kept = load_file(checkpoint / "network.safetensors")
    assert all(".lora_" in name for name in kept)
    assert all(RANK in tensor.shape[:2] for tensor in kept.values())
    train(recipe)
    assert lora_of(recipe).read_bytes() == lora_of(adapted).read_bytes()


def test_the_output_is_one_small_file_with_the_hash_of_its_base_model(adapted, model):
    product = adapted.output / "keyframes" / "output"
    assert {path.name for path in product.iterdir() if path.is_dir()} == {"lora", "scheduler"}
    with safe_open(lora_of(adapted), "pt") as file:
        assert file.metadata() == {"format": "pt", "base_model_sha256": hash_folder(model)}
    tensors = load_file(lora_of(adapted))
    names = {
        name.removesuffix(".weight") for name in load_file(next((model / "unet").glob("*.s*")))
    }
    for name, tensor in tensors.items():
        layer, _, matrix = name.removeprefix("unet.").partition(".lora_")
        assert layer in names
        assert tensor.shape[0 if matrix == "A.weight" else 1] == RANK
        assert tensor.abs().max() > 0, name
    for part in ("attn2.to_v", "ff.net.0.proj", "proj_in", "conv2", "temporal.to_qkv"):
        assert any(part in name for name in tensors), part


@torch.no_grad()
def test_the_exported_model_is_the_base_with_the_lora(adapted, model, tmp_path):
    export(adapted.output, tmp_path / "merged", "fp32")
    merged = MagicVideoPipeline.from_pretrained(tmp_path / "merged").unet.state_dict()
    base = MagicVideoPipeline.from_pretrained(model)
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    base.load_lora_weights(lora_of(adapted))
    changed = set()
    for name, tensor in base.unet.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], atol=0, rtol=0)
        if not torch.equal(tensor, before[name]):
            changed.add(name)
    assert len(changed) == len(load_file(lora_of(adapted))) / 2
    # the network that was trained makes the same: its averages are what was written
    network = task_of(adapted, "keyframes").network
    newest = sorted((adapted.output / "keyframes" / "checkpoints").glob("step-*"))[-1]
    averages = load_file(newest / "ema.safetensors")
    assert not network.load_state_dict(averages, strict=False).unexpected_keys
    inputs = (torch.randn(2, 4, 5, 3, 3), torch.tensor([9, 900]), torch.randn(2, 6, 14))
    fps = torch.tensor([6.0, 11.0])
    torch.testing.assert_close(network.unet(*inputs, fps).sample, base.unet(*inputs, fps).sample)
    text = json.loads((tmp_path / "merged" / "training.json").read_text())
    assert text["steps"] == {"keyframes": 4}


def test_only_adapters_are_trained_and_the_dry_run_shows_it(adapted):
    task = task_of(adapted, "keyframes")
    network = task.network
    assert isinstance(network, LoraDenoiser)
    (row,) = estimate_run(adapted)
    optimizer = build_optimizer(network, adapted.keyframes, task.lr_scale)
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert row.trained == row.new == held
    assert row.parameters == count_parameters(network) == row.pretrained + held
    trained = {name for name, p in network.base.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    frozen = task.encoders
    below = (frozen.vae, frozen.text_encoder, frozen.image_encoder, network.base)
    assert row.memory.weights == 4 * sum(map(count_parameters, below))
    network.to(memory_format=torch.channels_last)
    assert network.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("start", "other", "mode", "changes", "sentence"),
    [
        (None, None, "directed", {}, r"keyframes\.lora adapts a finished model, .* names none"),
        ("model", "image", "directed", {}, r"trains it in another stage; set init_from="),
        ("model", "unsupervised", "directed", {}, "trains it in another stage"),
        (
            "model",
            None,
            "directed",
            {"trainable": "temporal"},
            r"trainable=temporal does not go with keyframes",
        ),
        (
            "model",
            None,
            "directed",
            {"weight_interpolation": 0.5},
            r"weight_interpolation=0\.5 does not go with key",
        ),
        (
            "model",
            None,
            "none",
            {},
            r"keyframes\.lora\.targets has temporal, but the U-Net has no such",
        ),
    ],
)
def test_unsupported_lora_targets_are_refused(
    start, other, mode, changes, sentence, model, prepared, tmp_path
):
    values = recipe_of(model, prepared, tmp_path, **changes).model_dump(mode="json")
    stages = {"autoencoder", "clip"} if start is None else set()
    everything = tiny_values(prepared, tmp_path)
    values.update({name: everything[name] for name in stages | {other} - {None}})
    values["init_from"] = start and str(model)
    values["unet"]["temporal_attention"] = mode
    recipe = Recipe.model_validate(values)
    with pytest.raises(UserError, match=sentence):
        estimate_run(recipe)


def test_only_temporal_layers_are_trained_and_the_others_stay_bit_identical(
    model, prepared, tmp_path
):
    recipe = recipe_of(model, prepared, tmp_path, lora=None, trainable="temporal")
    task = task_of(recipe, "keyframes")
    network = task.network
    optimizer = build_optimizer(network, recipe.keyframes, task.lr_scale)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in held}
    new = {name for name, _ in network.unet.named_parameters() if is_temporal_key(name)}
    assert {name.removeprefix("unet.") for name in names if name.startswith("unet.")} == new
    assert {name.split(".")[0] for name in names} == {"unet", "image_conditioner"}
    train(recipe)
    before = load_file(next((model / "unet").glob("*.safetensors")))
    after = load_file(next((tmp_path / "keyframes" / "output" / "unet").glob("*.safetensors")))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == before.keys() - new
    (row,) = estimate_run(recipe)
    assert row.trained == sum(p.numel() for p in network.parameters() if id(p) in held)

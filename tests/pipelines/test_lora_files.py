"""LoRAs in the pipeline: merged, recorded, unloaded, and refused if they do not fit."""

import json
import pickle

import pytest
import torch
from loras import ALPHA, SPATIAL, in_peft_names, random_updates, write_style
from safetensors.torch import load_file, save_file
from tiny_model import frames_of

from magicvideo.atomic_io import hash_folder, sha256
from magicvideo.errors import UserError
from magicvideo.models.lora import BASE_MODEL
from magicvideo.pipelines.lora import lora_hash, read_lora
from magicvideo.pipelines.request import GenerationSettings, LoraRef, request_from_json
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

STAGES = ("keyframes",)


@pytest.fixture
def model(tiny_model):
    return MagicVideoPipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def style(pipeline, tmp_path_factory):
    return write_style(tmp_path_factory.mktemp("loras") / "style.safetensors", pipeline)


def test_loras_add_up_are_recorded_and_can_be_unloaded(model, pipeline, style, tmp_path):
    other = write_style(tmp_path / "other.safetensors", model, alpha=3.0)
    plain = frames_of(model, "a cat", seed=3, stages=STAGES)
    model.load_lora_weights(style, scale=0.5)
    first = model("a cat", seed=3, stages=STAGES).videos[0]
    model.load_lora_weights(other)
    both = model("a cat", seed=3, stages=STAGES).videos[0]
    assert (first.frames - plain[0]).abs().mean() > 1e-3
    assert (both.frames - first.frames).abs().mean() > 1e-3
    uses = (
        LoraRef(name="style.safetensors", sha256=sha256(style), scale=0.5),
        LoraRef(name="other.safetensors", sha256=sha256(other), scale=1.0),
    )
    assert both.request.loras == uses
    assert request_from_json(both.request.to_json()) == both.request
    with pytest.raises(UserError, match=r"other\.safetensors is already loaded"):
        model.load_lora_weights(other, scale=0.2)
    with pytest.raises(UserError, match=r"made with the LoRA style\.safetensors .* at 0\.5, but "):
        model.generate(first.request)
    (unstyled,) = pipeline.build_requests(["a cat"], [3], GenerationSettings(stages=STAGES))
    with pytest.raises(UserError, match="made with no LoRA, but the model has the LoRA style"):
        model.generate(unstyled)
    model.unload_lora_weights()
    assert torch.equal(frames_of(model, "a cat", seed=3, stages=STAGES), plain)
    with pytest.raises(UserError, match="but the model has no LoRA"):
        model.generate(first.request)


def test_a_lazily_loaded_model_gives_the_same_video(model, tiny_model, style):
    stagewise = MagicVideoPipeline.from_pretrained(tiny_model, offload_device="cpu")
    for each in (model, stagewise):
        each.load_lora_weights(style, scale=-0.4)
    expected = model("a cat", seed=3, stages=STAGES).videos[0]
    found = stagewise("a cat", seed=3, stages=STAGES).videos[0]
    assert torch.equal(found.frames, expected.frames)
    assert found.request == expected.request


def test_a_saved_model_contains_its_merged_loras(model, style, tmp_path):
    model.load_lora_weights(style)
    styled = model("a cat", seed=3, stages=STAGES).videos[0]
    model.save_pretrained(tmp_path / "styled")
    again = MagicVideoPipeline.from_pretrained(tmp_path / "styled")
    for each in (model, again):
        video = each("a cat", seed=3, stages=STAGES).videos[0]
        assert torch.equal(video.frames, styled.frames)
        assert (video.request.loras, video.request.model) == ((), hash_folder(tmp_path / "styled"))


def test_alpha_is_read_from_the_adapter_config_of_peft(pipeline, tmp_path):
    updates = random_updates(pipeline.unet, SPATIAL)
    tensors = {
        name.replace("unet.", "base_model.model."): tensor.contiguous()
        for name, tensor in in_peft_names("unet", updates).items()
    }
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"adapter_config\.json is missing, in which peft stores"):
        lora_hash(path)
    networks = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    config.write_text(json.dumps({"r": 3, "lora_alpha": ALPHA, "use_dora": False}))
    lora = read_lora(path, 1.0, networks)
    assert {update.alpha for update in lora.weights["unet"].values()} == {ALPHA}
    config.write_text(json.dumps({"r": 3, "lora_alpha": 1.0, "use_rslora": True}))
    assert lora_hash(path) != lora.ref.sha256  # another alpha is another LoRA
    with pytest.raises(UserError, match="was made with use_rslora=True, which is not supported"):
        read_lora(path, 1.0, networks)


def test_another_base_model_gives_a_hint_and_alpha_is_read_from_the_header(model, tmp_path, caplog):
    tensors = in_peft_names("unet", random_updates(model.unet, ["attn2.to_k"]))
    path = tmp_path / "x.safetensors"
    notes = json.dumps({"unet.r": 3, "unet.lora_alpha": 7})
    save_file(tensors, path, {BASE_MODEL: "ab" * 32, "lora_adapter_metadata": notes})
    model.load_lora_weights(path)
    assert f"was trained on model {'ab' * 32}" in caplog.text
    (lora,) = model.lora_stack._in_use()
    assert {update.alpha for update in lora.weights["unet"].values()} == {7.0}


def test_files_that_cannot_be_read_are_refused(model, style, tmp_path):
    weights = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="is a folder; name the"):
        lora_hash(empty)
    pickled = tmp_path / "style.pt"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(style.read_bytes()[:-5])
    wide = tmp_path / "wide.safetensors"
    tensors = load_file(style)
    name = next(key for key in tensors if "attn2_to_k.lora_down" in key)
    save_file({**tensors, name: torch.ones(3, 1024)}, wide)
    for path, sentence in (
        (tmp_path / "none.safetensors", "does not exist"),
        (empty, r"contains no \.safetensors file"),
        (pickled, r"only \.safetensors files are, which cannot run code"),
        (cut, "is not a safetensors file"),
        (wide, r"\[3, 1024\] .* made for another base model"),
    ):
        with pytest.raises(UserError, match=sentence):
            model.load_lora_weights(path)
    for scale in (float("nan"), 11.0):
        with pytest.raises(UserError, match=r"The scale of the LoRA is .* from -10 to 10"):
            model.load_lora_weights(style, scale=scale)
    assert model.lora_stack.refs == ()
    for key, tensor in model.unet.state_dict().items():
        assert torch.equal(tensor, weights[key]), key


def test_adapters_are_chosen_scaled_and_switched_off_as_in_diffusers(model, style, tmp_path):
    write_style(tmp_path / "other.safetensors", model, alpha=3.0)
    plain = frames_of(model, "a cat", seed=3, stages=STAGES)
    model.load_lora_weights(style, adapter_name="style")
    model.load_lora_weights(tmp_path, weight_name="other.safetensors")
    assert model.get_active_adapters() == ["style", "default_1"]
    assert model.get_list_adapters()["unet"] == ["style", "default_1"]
    model.set_adapters("style", 0.5)
    half = model("a cat", seed=3, stages=STAGES).videos[0]
    assert [(ref.name, ref.scale) for ref in half.request.loras] == [("style.safetensors", 0.5)]
    model.set_adapters(["default_1", "style"], [0.2, 1.0])
    assert [ref.scale for ref in model.lora_stack.refs] == [0.2, 1.0]
    model.disable_lora()
    assert torch.equal(frames_of(model, "a cat", seed=3, stages=STAGES), plain)
    model.enable_lora()
    model.delete_adapters("default_1")
    model.set_adapters("style", 0.5)
    assert torch.equal(frames_of(model, "a cat", seed=3, stages=STAGES)[0], half.frames)
    with pytest.raises(UserError, match=r"Unknown LoRA 'colour'; loaded are: style"):
        model.set_adapters("colour")
    with pytest.raises(UserError, match="2 weights were given for 1 adapters"):
        model.set_adapters("style", [1.0, 2.0])


def test_fused_loras_stay_until_they_are_unfused(model, style):
    plain = frames_of(model, "a cat", seed=3, stages=STAGES)
    model.load_lora_weights(style)
    model.fuse_lora(lora_scale=0.5)
    model.unload_lora_weights()
    fused = model("a cat", seed=3, stages=STAGES).videos[0]
    assert not torch.equal(fused.frames, plain[0])
    assert [ref.scale for ref in fused.request.loras] == [0.5]  # the file still names it
    model.unfuse_lora()
    model.unload_lora_weights()
    assert torch.equal(frames_of(model, "a cat", seed=3, stages=STAGES), plain)


def test_a_lora_can_be_given_as_tensors(model, style):
    model.load_lora_weights(style)
    expected = frames_of(model, "a cat", seed=3, stages=STAGES)
    model.unload_lora_weights()
    model.load_lora_weights(load_file(style))
    assert torch.equal(frames_of(model, "a cat", seed=3, stages=STAGES), expected)
    assert len(model.lora_stack.refs[0].sha256) == 64

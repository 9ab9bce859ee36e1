"""LoRAs against peft, which adds adapters to layers, and diffusers, which reads the layouts."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from loras import (
    ALPHA,
    CONVOLUTIONS,
    RANK,
    SPATIAL,
    TEXT,
    in_kohya_names,
    in_peft_names,
    random_updates,
)
from networks import FRAMES, SMALL, make_inputs, make_unet, randomise
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPTextConfig, CLIPTextModel

from magicvideo.models.lora import convert_lora_state_dict, merge_lora

# diffusers warns of an import that it makes itself
pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")
SCALE = 0.7
TEXT_CONFIG = CLIPTextConfig(
    hidden_size=10,
    intermediate_size=14,
    num_attention_heads=2,
    num_hidden_layers=2,
    vocab_size=20,
    max_position_embeddings=11,
    bos_token_id=18,
    eos_token_id=19,
)


@torch.no_grad()
def by_peft(network, updates):
    """Let peft add the updates, times the scale, to the outputs of layers."""
    layers = [name.removesuffix(".weight") for name in updates]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA * SCALE, target_modules=layers)
    inject_adapter_in_model(config, network, "default")
    for name, update in updates.items():
        layer = network.get_submodule(name.removesuffix(".weight"))
        layer.lora_A["default"].weight.copy_(update.down)
        layer.lora_B["default"].weight.copy_(update.up)
    return network.eval()


@pytest.mark.parametrize("linear", [False, True])
@torch.no_grad()
def test_the_merged_video_network_equals_the_one_with_adapters(linear):
    """Image LoRAs have spatial layers; temporal attention and adaptors are unchanged."""
    network, inputs = make_unet(use_linear_projection=linear), make_inputs()
    updates = random_updates(network, (*SPATIAL, *CONVOLUTIONS))
    plain = network(*inputs).sample
    twin = make_unet(use_linear_projection=linear)
    twin.load_state_dict(network.state_dict())
    expected = by_peft(twin, updates)(*inputs).sample
    tensors = in_kohya_names("unet", updates)
    found = convert_lora_state_dict(tensors, {"unet": network.state_dict()}, {}, "x")["unet"]
    merge_lora(network.state_dict(), found, SCALE)
    merged = network(*inputs).sample
    assert (merged - plain).abs().mean() > 0.01
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()
    # and time still works: without it the frames come out otherwise
    single = network(inputs[0][:, :1], *inputs[1:]).sample
    assert (network(*inputs).sample[:, 0] - single[:, 0]).abs().max() < 1e-4
    changed = torch.cat([torch.randn_like(inputs[0][:, :2]), inputs[0][:, 2:]], dim=1)
    assert (network(changed, *inputs[1:]).sample[:, 4] - merged[:, 4]).abs().max() > 1e-3


@torch.no_grad()
def test_the_merged_text_encoder_equals_the_one_with_adapters():
    network, twin = (randomise(CLIPTextModel(TEXT_CONFIG)) for _ in range(2))
    twin.load_state_dict(network.state_dict())
    ids, updates = torch.tensor([[18, 3, 7, 19]]), random_updates(network, TEXT)
    plain = network(ids).last_hidden_state
    tensors = in_kohya_names("text_encoder", updates)
    weights = {"text_encoder": network.state_dict(), "unet": {}}
    found = convert_lora_state_dict(tensors, weights, {}, "x")["text_encoder"]
    merge_lora(network.state_dict(), found, SCALE)
    merged, expected = network(ids), by_peft(twin, updates)(ids)
    assert (merged.last_hidden_state - plain).abs().mean() > 0.01
    torch.testing.assert_close(
        merged.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5
    )


def test_names_of_kohya_are_converted_as_by_diffusers():
    networks = {"unet": make_unet(), "text_encoder": CLIPTextModel(TEXT_CONFIG)}
    weights = {name: network.state_dict() for name, network in networks.items()}
    tensors = {
        **in_kohya_names("unet", random_updates(networks["unet"], (*SPATIAL, *CONVOLUTIONS))),
        **in_kohya_names("text_encoder", random_updates(networks["text_encoder"], TEXT)),
    }
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(dict(tensors))
    found, expected = (
        convert_lora_state_dict(each, weights, {}, "x") for each in (tensors, theirs)
    )
    for component, updates in expected.items():
        assert found[component].keys() == updates.keys()
        for name, update in updates.items():
            assert torch.equal(found[component][name].down, update.down), name
            assert torch.equal(found[component][name].up, update.up), name


@torch.no_grad()
def test_a_lora_of_an_image_network_has_the_same_effect_in_the_inflated_network():
    """diffusers loads the file into its own network; ours is that network, frame by frame."""
    config = {name: SMALL[name] for name in SMALL if name != "num_frames"}
    image = randomise(UNet2DConditionModel(**config))
    video = make_unet(temporal_attention="none", frame_adaptor=False)
    theirs, own = image.state_dict(), video.state_dict()
    video.load_state_dict({**own, **theirs})
    torch.nn.init.zeros_(video.fps_embedding.linear_2.weight)
    torch.nn.init.zeros_(video.fps_embedding.linear_2.bias)
    updates = random_updates(video, SPATIAL, alpha=float(RANK))
    tensors = in_peft_names("unet", updates)
    image.load_lora_adapter(dict(tensors), prefix="unet")
    found = convert_lora_state_dict(tensors, {"unet": video.state_dict()}, {}, "x")["unet"]
    merge_lora(video.state_dict(), found, 1.0)
    latents, timestep, tokens, fps = make_inputs()
    frames = image(
        latents.flatten(0, 1),
        timestep.repeat_interleave(FRAMES),
        tokens.repeat_interleave(FRAMES, dim=0),
    ).sample
    expected = frames.unflatten(0, (-1, FRAMES))
    torch.testing.assert_close(
        video(latents, timestep, tokens, fps).sample, expected, atol=1e-5, rtol=1e-4
    )

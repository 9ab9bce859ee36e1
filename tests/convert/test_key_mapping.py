"""Our key mapping against that of diffusers, and the sizes of published networks."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as reference
from image_models import original_layout, stored_parts
from transformers import CLIPTextConfig, CLIPTextModel

from magicvideo.convert.single_file import text_config, unet_config, vae_config

FOUR = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "sample_size": 64}
DOWN = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
UP = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
PUBLISHED = {
    "1.x": {
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "text": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "quick_gelu",
        },
    },
    "2.x": {
        "unet": {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        "text": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
    },
}
AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


@pytest.mark.parametrize("version", ["1.x", "2.x"])
def test_diffusers_reads_the_layout_as_we_do(image_model, second_image_model, version):
    model = {"1.x": image_model, "2.x": second_image_model}[version]
    stored, _ = original_layout(model, version)
    if version == "1.x":
        text = reference.convert_ldm_clip_checkpoint(dict(stored))
    else:
        text = reference.convert_open_clip_checkpoint(model.text_encoder, dict(stored))
    converted = {
        "unet": reference.convert_ldm_unet_checkpoint(dict(stored), model.unet.config),
        "vae": reference.convert_ldm_vae_checkpoint(dict(stored), model.vae.config),
        "text_encoder": {name.removeprefix("text_model."): x for name, x in text.items()},
    }
    for part, tensors in converted.items():
        own = {
            name.removeprefix("text_model."): tensor
            for name, tensor in getattr(model, part).state_dict().items()
        }
        assert tensors.keys() == own.keys()
        assert all(torch.equal(tensors[name], own[name]) for name in own), part


@pytest.mark.parametrize("version", PUBLISHED)
def test_the_configurations_of_published_networks_follow_from_tensor_shapes(version):
    settings = {**FOUR, "down_block_types": DOWN, "up_block_types": UP}
    unet = {**settings, **PUBLISHED[version]["unet"]}
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**AUTOENCODER),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**PUBLISHED[version]["text"])),
        }
    stored = stored_parts(parts, version)
    if version == "2.x":  # the last layer, which the text encoder leaves out, is stored
        name = "cond_stage_model.model.transformer.resblocks.{}.mlp.c_fc.weight"
        stored[name.format(23)] = stored[name.format(22)]
    for read, expected in (
        (unet_config, unet),
        (vae_config, AUTOENCODER),
        (text_config, PUBLISHED[version]["text"]),
    ):
        found = read(stored)
        assert {name: found[name] for name in expected} == expected
    text = text_config(stored)
    assert (text["vocab_size"], text["max_position_embeddings"]) == (49408, 77)
    converted = reference.convert_ldm_unet_checkpoint(dict(stored), parts["unet"].config)
    own = {name: tensor.shape for name, tensor in parts["unet"].state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == own

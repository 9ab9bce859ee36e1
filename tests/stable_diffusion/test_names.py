"""Our names of the original layout against diffusers' own conversion."""

import pytest
import torch
from diffusers.loaders import single_file_utils as reference
from image_models import original_layout


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

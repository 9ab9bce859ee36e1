import json

import pytest
import torch
from diffusers import AutoencoderKL
from networks import randomise

from magicvideo.errors import UserError
from magicvideo.models.autoencoder import PatchAutoencoder, vae_scale_factor
from magicvideo.models.video_vae import (
    AUTOENCODERS,
    autoencoder_from_config_meta,
    inflate_autoencoder,
    load_autoencoder,
)
from magicvideo.pipelines.model_folder import COMPONENTS


def make_patch():
    return PatchAutoencoder(
        latent_channels=5,
        patch_size=4,
        widths=(6, 10),
        decoder_layers=(1, 2),
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def make_kl():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 6, 8),
        latent_channels=5,
        norm_num_groups=2,
    )


@pytest.mark.parametrize("make", [make_patch, make_kl])
@pytest.mark.parametrize("video", [False, True])
def test_each_class_is_loaded_as_the_class_that_was_saved(make, video, tmp_path):
    network = make()
    if video:
        network = inflate_autoencoder(network, temporal_heads=2, temporal_window_size=3)
    randomise(network).half().save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert type(loaded) is type(network) is AUTOENCODERS[type(network).__name__]
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float())
    outline = autoencoder_from_config_meta(json.loads((tmp_path / "config.json").read_text()))
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    assert dict(outline.config)["latent_channels"] == 5
    assert vae_scale_factor(outline) == 4
    assert outline.state_dict().keys() == network.state_dict().keys()


def test_a_model_folder_may_hold_all_of_them():
    assert set(COMPONENTS["vae"].classes) == set(AUTOENCODERS)


@pytest.mark.parametrize(
    "content", [None, "{", "[1]", json.dumps({}), json.dumps({"_class_name": "VideoUNet"})]
)
def test_another_folder_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="is not an autoencoder: _class_name"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"_class_name": "VideoUNet"}])
def test_settings_of_another_class_are_refused(settings):
    with pytest.raises(UserError, match=r"_class_name of an autoencoder is .+ it must be one of"):
        autoencoder_from_config_meta(settings)

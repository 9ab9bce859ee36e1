import pytest
import torch
from diffusers import UNet2DConditionModel
from networks import FRAMES, SMALL, VIDEOS, make_inputs, make_unet, randomise

from magicvideo.models.inflate import inflate, is_temporal_key
from magicvideo.models.unet import VideoUNet

# diffusers warns of an import that it makes itself
pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")

OURS_ALONE = ("num_frames", "temporal_attention", "frame_adaptor")
CONFIGS = {
    "one layer, attention outside": {},
    "two layers, attention inside, linear projection": {
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
    },
    "three levels, one number of heads": {
        "block_out_channels": (8, 12, 20),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    },
    "three levels, two layers, heads by level": {
        "layers_per_block": 2,
        "block_out_channels": (8, 12, 20),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 3, 5),
        "norm_num_groups": 2,
    },
    "no attention but in the middle": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
}
STABLE_DIFFUSION = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
VERSIONS = {
    "1.5": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "2.1": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
PARAMETERS = {"1.5": 859_520_964, "2.1": 865_910_724}  # of the published weights


def make_image_network(**changes):
    config = {**SMALL, **changes}
    shared = {name: value for name, value in config.items() if name not in OURS_ALONE}
    return randomise(UNet2DConditionModel(**shared))


def by_frame(image, latents, timestep, tokens):
    """The output of the image network for every frame, `b f c h w`."""
    frames = latents.shape[1]
    folded = image(
        latents.flatten(0, 1),
        timestep.repeat_interleave(frames),
        tokens.repeat_interleave(frames, dim=0),
    ).sample
    return folded.unflatten(0, (VIDEOS, frames))


@pytest.mark.parametrize("side", [(10, 14), (9, 7), (8, 12)], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_starts_as_the_image_network_frame_by_frame(config, side):
    image, video = make_image_network(**config), VideoUNet(**{**SMALL, **config})
    inflate(video, image.state_dict())
    latents, timestep, tokens, fps = make_inputs(FRAMES, *side)
    expected = by_frame(image, latents, timestep, tokens)
    assert expected.std() > 0.3
    for network in (video.train(), video.eval(), video.to(memory_format=torch.channels_last)):
        made = network(latents, timestep, tokens, fps).sample
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_ablation_without_temporal_layers_is_the_image_network():
    image = make_image_network()
    video = make_unet(temporal_attention="none", frame_adaptor=False)
    inflation = inflate(video, image.state_dict())
    assert inflation.new
    assert all("fps_embedding" in name for name in inflation.new)
    torch.nn.init.zeros_(video.fps_embedding.linear_2.weight)
    torch.nn.init.zeros_(video.fps_embedding.linear_2.bias)
    latents, timestep, tokens, fps = make_inputs()
    expected = by_frame(image, latents, timestep, tokens)
    made = video(latents, timestep, tokens, fps).sample
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_has_every_tensor_of_stable_diffusion(version):
    config = {**STABLE_DIFFUSION, **VERSIONS[version]}
    with torch.device("meta"):
        image, video = UNet2DConditionModel(**config), VideoUNet(**config)
    expected = {name: tensor.shape for name, tensor in image.state_dict().items()}
    state = video.state_dict()
    assert {name: state[name].shape for name in state if not is_temporal_key(name)} == expected
    assert sum(tensor.numel() for tensor in image.state_dict().values()) == PARAMETERS[version]

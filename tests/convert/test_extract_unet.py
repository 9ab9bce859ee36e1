import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from networks import make_unet
from safetensors.torch import load_file

from magicvideo.cli import run
from magicvideo.convert.extract_unet import extract_image_unet
from magicvideo.errors import UserError
from magicvideo.models.adaptor import FrameAdaptor
from magicvideo.models.blocks import SpatioTemporalTransformer
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")
FPS = 9.0


@torch.no_grad()
def spatial_only(unet, *, neutral):
    """Zero the temporal attention; with `neutral`, adaptors of spatial transformers scale by 1."""
    for module in unet.modules():
        if isinstance(module, SpatioTemporalTransformer):
            module.temporal.to_out.weight.zero_()
            module.temporal.to_out.bias.zero_()
            if neutral:
                module.adaptor.scale.fill_(1)
    return unet


@torch.no_grad()
def both(image, video):
    config = image.config
    latents = torch.randn(2, 1, config.in_channels, 10, 14)
    tokens, timestep = torch.randn(2, 7, config.cross_attention_dim), torch.tensor([931, 17])
    made = image(latents[:, 0], timestep, tokens).sample
    return made, video(latents, timestep, tokens, torch.full((2,), FPS)).sample[:, 0]


@pytest.mark.parametrize("linear", [False, True])
def test_equals_the_video_network_on_a_single_frame(linear):
    video = spatial_only(make_unet(use_linear_projection=linear), neutral=True)
    before = {name: tensor.clone() for name, tensor in video.state_dict().items()}
    image, extraction = extract_image_unet(video, FPS)
    made, expected = both(image, video)
    assert expected.std() > 0.3
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert extraction.folded == sum(isinstance(m, FrameAdaptor) for m in video.modules())
    assert extraction.scaled_residuals == 0
    assert all(torch.equal(video.state_dict()[name], x) for name, x in before.items())


@pytest.mark.parametrize("changes", [{"convolutions": "3d"}, {"spatial_attention": False}])
def test_refuses_networks_without_an_image_equivalent(changes):
    with pytest.raises(UserError, match="does not support; use a model without them"):
        extract_image_unet(make_unet(**changes), FPS)


def test_reports_scales_that_cannot_be_folded():
    video = spatial_only(make_unet(), neutral=False)
    image, extraction = extract_image_unet(video, FPS)
    attentions = [m for m in video.modules() if isinstance(m, SpatioTemporalTransformer)]
    assert extraction.scaled_residuals == extraction.left_out == len(attentions)
    distances = [float((m.adaptor.scale[0] - 1).detach().abs().max()) for m in attentions]
    assert extraction.largest == pytest.approx(max(distances))
    made, expected = both(image, video)
    assert (made - expected).abs().max() > 1e-3


def test_the_command_writes_what_diffusers_loads(tiny_model, tmp_path, capsys):
    model, out = MagicVideoPipeline.from_pretrained(tiny_model), tmp_path / "image"
    command = ["export", "--image-model", str(tiny_model), str(out)]
    assert run([*command, "--precision", "fp32"]) == 0
    said = capsys.readouterr().out
    assert "adaptors of the first frame are folded into convolutions" in said
    assert "4 more scale a residual connection too" in said
    assert "temporal attention layers are omitted" in said
    loaded = UNet2DConditionModel.from_pretrained(out)
    expected, _ = extract_image_unet(model.unet, 7.0)  # the model's own frame rate
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert run(command) == 2
    assert f"{out} exists" in capsys.readouterr().err
    shutil.rmtree(out)
    assert run(command) == 0
    stored = load_file(out / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}

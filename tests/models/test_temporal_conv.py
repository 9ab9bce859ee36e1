import pytest
import torch
from networks import FRAMES, SMALL, make_inputs, make_unet, randomise
from torch.nn import functional as F

from magicvideo.models.blocks import (
    Conv2Plus1d,
    InflatedConv3d,
    build_conv,
)
from magicvideo.models.inflate import inflate, is_temporal_key
from magicvideo.models.unet import VideoUNet

VIDEOS, IN, OUT, HEIGHT, WIDTH = 2, 3, 5, 7, 6
KINDS = ("2+1d", "3d")


def videos(frames):
    return torch.randn(VIDEOS * frames, IN, HEIGHT, WIDTH)


def kernel_3d(layer):
    """The 3x3x3 kernel `out in time h w`, earliest frame first."""
    first, second = layer.temporal_weight.chunk(2)
    order = (
        (second, first, layer.weight) if layer.shifts == (1, 2) else (first, layer.weight, second)
    )
    return torch.stack(order, dim=2)


def padded(x, frames, *, causal):
    """Videos `b c f h w` with zeros where a kernel of three frames looks beyond them."""
    whole = x.unflatten(0, (VIDEOS, frames)).transpose(1, 2)
    return F.pad(whole, (0, 0, 0, 0, 2, 0) if causal else (0, 0, 0, 0, 1, 1))


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_the_inflated_kernel_is_a_convolution_over_space_and_time(causal, stride, frames):
    layer, x = randomise(InflatedConv3d(IN, OUT, stride, causal=causal)), videos(frames)
    expected = F.conv3d(
        padded(x, frames, causal=causal),
        kernel_3d(layer),
        layer.bias,
        (1, stride, stride),
        (0, 1, 1),
    )
    torch.testing.assert_close(layer(x, frames), expected.transpose(1, 2).flatten(0, 1))


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_the_factorised_kernel_is_one_over_space_and_then_one_over_time(causal, frames):
    layer, x = randomise(Conv2Plus1d(IN, OUT, 2, causal=causal)), videos(frames)
    h = F.conv2d(x, layer.weight, layer.bias, 2, 1)
    here, first, second = layer.temporal_weight.chunk(3)
    order = (second, first, here) if causal else (first, here, second)
    kernel = torch.stack(order, dim=2)[..., None, None]
    expected = F.conv3d(padded(h, frames, causal=causal), kernel, layer.temporal_bias)
    torch.testing.assert_close(layer(x, frames), expected.transpose(1, 2).flatten(0, 1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_starts_as_the_2d_convolution(kind):
    layer, x = build_conv(kind, IN, OUT, stride=2, causal=False), videos(4)
    expected = F.conv2d(x, layer.weight, layer.bias, 2, 1)
    torch.testing.assert_close(layer(x, 4), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_network_starts_as_the_image_network(kind):
    """Every tensor of the image network is copied, and frames are still independent."""
    image = make_unet(temporal_attention="none", frame_adaptor=False)
    weights = {name: x for name, x in image.state_dict().items() if not is_temporal_key(name)}
    network = VideoUNet(**SMALL, convolutions=kind).eval()
    account = inflate(network, weights)
    assert sorted(account.copied) == sorted(weights)
    assert {"conv_in.temporal_weight", "conv_out.temporal_weight"} <= set(account.new)
    torch.nn.init.zeros_(image.fps_embedding.linear_2.weight)
    torch.nn.init.zeros_(image.fps_embedding.linear_2.bias)
    inputs = make_inputs()
    torch.testing.assert_close(network(*inputs).sample, image(*inputs).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["directed", "bidirectional"])
@torch.no_grad()
def test_with_directed_attention_no_frame_depends_on_a_later_one(mode, kind):
    network = make_unet(convolutions=kind, temporal_attention=mode)
    latents, *given = make_inputs()
    changed = latents.clone()
    changed[:, 3] = torch.randn_like(changed[:, 3])
    moved = (
        (network(latents, *given).sample - network(changed, *given).sample)
        .abs()
        .amax(dim=(0, 2, 3, 4))
    )
    assert moved[3:].min() > 1e-4
    if mode == "directed":
        assert moved[:3].max() == 0
    else:
        assert moved[:3].min() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_in_the_memory_order_of_training(kind):
    network = make_unet(convolutions=kind).to(memory_format=torch.channels_last)
    network(*make_inputs(frames=FRAMES - 1)).sample.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad.abs().max() == 0] == []


@torch.no_grad()
def test_without_spatial_attention_its_layers_do_not_exist():
    with_it, without = make_unet(), make_unet(spatial_attention=False)
    gone = with_it.state_dict().keys() - without.state_dict().keys()
    assert gone == {
        name for name in with_it.state_dict() if ".attn1." in name or ".norm1." in name
    } - {name for name in with_it.state_dict() if "resnets" in name}
    assert without(*make_inputs()).sample.isfinite().all()


@torch.no_grad()
def test_without_spatial_attention_positions_are_independent():
    block = make_unet(spatial_attention=False).down_blocks[0].attentions[0].transformer_blocks[0]
    x, condition = torch.randn(4, 9, 8), torch.randn(2, 11, SMALL["cross_attention_dim"])
    changed = x.clone()
    changed[:, 5] = torch.randn_like(changed[:, 5])
    moved = (block(x, condition, 2) - block(changed, condition, 2)).abs().amax(dim=(0, 2))
    assert moved[5] > 1e-3
    moved[5] = 0
    assert moved.max() == 0

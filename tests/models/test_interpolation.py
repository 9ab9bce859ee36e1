import pytest
import torch

from magicvideo.models.interpolation import Interpolator
from magicvideo.models.unet import VideoUNet

CHANNELS, INSERTED, TOKENS, WIDTH = 3, 2, 5, 12
COMMON = {
    "sample_size": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


def make_interpolator():
    torch.manual_seed(3)
    return Interpolator(latent_channels=CHANNELS, num_inserted=INSERTED, **COMMON)


def randomise(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.fixture
def inputs():
    torch.manual_seed(5)
    return {
        "residuals": torch.randn(7, INSERTED, CHANNELS, 4, 6),
        "timestep": torch.arange(7) * 100,
        "keys": torch.randn(7, 2, CHANNELS, 4, 6),
        "noise_level": torch.arange(7) * 30,
        "tokens": torch.randn(7, TOKENS, WIDTH),
        "fps": torch.linspace(6, 24, 7),
    }


def test_every_input_reaches_every_new_frame(inputs):
    network = make_interpolator()
    randomise(network)
    before = network(**inputs)
    assert before.shape == inputs["residuals"].shape
    for name, value in inputs.items():
        changed = network(**{**inputs, name: value + 40 if value.dim() == 1 else value.flip(-1)})
        assert ((changed - before).flatten(2).abs().amax(dim=2) > 1e-6).all(), name


def test_both_keys_are_seen_from_every_new_frame(inputs):
    network = make_interpolator()
    randomise(network)
    for end in (0, 1):
        keys = inputs["keys"].clone().requires_grad_()
        made = network(**{**inputs, "keys": keys})
        for place in range(INSERTED):
            (gradient,) = torch.autograd.grad(made[:, place].sum(), keys, retain_graph=True)
            assert gradient[:, end].abs().sum() > 1e-4


def test_it_starts_with_what_the_key_frame_network_knows(inputs):
    torch.manual_seed(4)
    keyframes = VideoUNet(in_channels=CHANNELS, out_channels=CHANNELS, num_frames=9, **COMMON)
    randomise(keyframes)
    network = make_interpolator()
    randomise(network)
    network.start_from(keyframes)
    theirs = keyframes.state_dict()
    own = network.unet.state_dict()
    name = "mid_block.resnets.0.conv1.weight"
    assert torch.equal(own[name], theirs[name])
    assert torch.equal(own["conv_in.weight"][:, :CHANNELS], theirs["conv_in.weight"])
    assert not own["conv_in.weight"][:, CHANNELS:].any()
    rows = own["conv_in_adaptor.scale"]
    mean = theirs["conv_in_adaptor.scale"].mean(dim=0)
    torch.testing.assert_close(rows, mean.expand_as(rows))
    # nothing is added to the blend before the first update has been made
    shift = theirs["conv_out_adaptor.shift"].mean(dim=0)[:, None, None]
    torch.testing.assert_close(
        network(**inputs), shift.expand_as(inputs["residuals"]), atol=1e-6, rtol=0
    )


def test_weights_are_taken_over_without_temporal_attention_too():
    keyframes = VideoUNet(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        temporal_attention="none",
        frame_adaptor=False,
        **COMMON,
    )
    network = make_interpolator()
    network.start_from(keyframes)
    assert torch.equal(network.unet.conv_in.bias, keyframes.conv_in.bias)
    assert not network.unet.mid_block.attentions[0].temporal.to_out.weight.any()


def test_a_saved_network_is_the_network(inputs, tmp_path):
    network = make_interpolator().eval()
    randomise(network)
    network.register_to_config(residual_scale=0.4)
    network.save_pretrained(tmp_path)
    loaded = Interpolator.from_pretrained(tmp_path)
    assert loaded.config.residual_scale == 0.4
    assert torch.equal(loaded(**inputs), network(**inputs))


def test_a_noise_level_belongs_to_networks_that_know_it(inputs):
    unet, given = make_interpolator().unet, inputs
    latents = torch.randn(7, INSERTED + 2, 3 * CHANNELS + 1, 4, 6)
    with pytest.raises(ValueError, match="noise level"):
        unet(latents, given["timestep"], given["tokens"], given["fps"])

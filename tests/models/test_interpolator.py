import pytest
import torch

from magicvideo.models.interpolator import Interpolator, keyframe_rms_distance, lerp_keyframes
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
    return Interpolator(
        latent_channels=CHANNELS,
        num_inserted=INSERTED,
        residual_scale=0.3,
        estimate_channels=16,
        estimate_blocks=2,
        **COMMON,
    )


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
    before = network.denoise(**inputs)
    assert before.shape == inputs["residuals"].shape
    for name, value in inputs.items():
        changed = network.denoise(
            **{**inputs, name: value + 40 if value.dim() == 1 else value.flip(-1)}
        )
        assert ((changed - before).flatten(2).abs().amax(dim=2) > 1e-6).all(), name


def test_every_new_frame_depends_on_both_key_frames(inputs):
    network = make_interpolator()
    randomise(network)
    for end in (0, 1):
        keys = inputs["keys"].clone().requires_grad_()
        made = network.denoise(**{**inputs, "keys": keys})
        for place in range(INSERTED):
            (gradient,) = torch.autograd.grad(made[:, place].sum(), keys, retain_graph=True)
            assert gradient[:, end].abs().sum() > 1e-4


def test_it_is_initialised_from_the_keyframe_unet(inputs):
    torch.manual_seed(4)
    keyframes = VideoUNet(in_channels=CHANNELS, out_channels=CHANNELS, num_frames=9, **COMMON)
    randomise(keyframes)
    network = make_interpolator()
    randomise(network)
    network.init_from_keyframe_unet(keyframes)
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
        network.denoise(**inputs), shift.expand_as(inputs["residuals"]), atol=1e-6, rtol=0
    )


def test_weights_are_copied_on_the_levels_with_attention():
    torch.manual_seed(4)
    keyframes = VideoUNet(in_channels=CHANNELS, out_channels=CHANNELS, num_frames=9, **COMMON)
    randomise(keyframes)
    types = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    network = Interpolator(
        latent_channels=CHANNELS, num_inserted=INSERTED, estimate_channels=8, **(COMMON | types)
    )
    before = {name: value.clone() for name, value in network.unet.state_dict().items()}
    network.init_from_keyframe_unet(keyframes)
    theirs, own = keyframes.state_dict(), network.unet.state_dict()
    convolution = "down_blocks.0.resnets.0.conv1.weight"
    assert torch.equal(own[convolution], theirs[convolution])
    assert "down_blocks.0.attentions.0.proj_in.weight" in theirs.keys() - own.keys()
    # the key-frame network does not attend on the inner level, so there is nothing to take over
    fresh = "down_blocks.1.attentions.0.proj_in.weight"
    assert torch.equal(own[fresh], before[fresh])


def test_weights_are_copied_without_temporal_attention_too():
    keyframes = VideoUNet(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        temporal_attention="none",
        frame_adaptor=False,
        **COMMON,
    )
    network = make_interpolator()
    network.init_from_keyframe_unet(keyframes)
    assert torch.equal(network.unet.conv_in.bias, keyframes.conv_in.bias)
    assert not network.unet.mid_block.attentions[0].temporal.to_out.weight.any()


def test_a_saved_network_loads_unchanged(inputs, tmp_path):
    network = make_interpolator().eval()
    randomise(network)
    network.register_to_config(residual_scale=0.4)
    network.save_pretrained(tmp_path)
    loaded = Interpolator.from_pretrained(tmp_path)
    assert loaded.config.residual_scale == 0.4
    assert torch.equal(loaded.denoise(**inputs), network.denoise(**inputs))
    keys, level = inputs["keys"], inputs["noise_level"]
    assert torch.equal(
        loaded.estimate(keys, keys, level)[0], network.estimate(keys, keys, level)[0]
    )


def test_the_initial_estimate_is_linear_interpolation(inputs):
    network, (keys, level) = make_interpolator(), (inputs["keys"], inputs["noise_level"])
    estimated, unit = network.estimate(keys, keys, level)
    assert torch.equal(estimated, lerp_keyframes(keys, INSERTED))
    apart = (keys[:, 1] - keys[:, 0]).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(unit.flatten(), 0.3 * (apart + 0.03))
    randomise(network)
    learned, _ = network.estimate(keys, keys, level)
    assert ((learned - estimated).flatten(2).abs().amax(dim=2) > 1e-3).all()
    # where nothing moves, what an estimate adds is held small
    still = keys[:, :1].expand(-1, 2, -1, -1, -1)
    added, _ = network.estimate(still, still, level)
    assert (added - still[:, :1]).abs().max() < 0.2 * (learned - estimated).abs().max()


def test_the_estimate_of_a_gap_does_not_depend_on_the_batch(inputs):
    network, (keys, level) = make_interpolator(), (inputs["keys"], inputs["noise_level"])
    randomise(network)
    together, units = network.estimate(keys, keys, level)
    for place in range(len(keys)):
        one = keys[place : place + 1]
        alone, unit = network.estimate(one, one, level[place : place + 1])
        torch.testing.assert_close(alone[0], together[place], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(unit[0], units[place])
    noisier, _ = network.estimate(keys, keys, level + 300)
    assert (noisier - together).abs().max() > 1e-4
    swapped, _ = network.estimate(keys.flip(1), keys.flip(1), level)
    assert (swapped - together).abs().max() > 1e-3


def test_keyframe_errors_are_interpolated_to_the_frames_between(inputs):
    network, (keys, level) = make_interpolator(), (inputs["keys"], inputs["noise_level"])
    randomise(network)
    wrong = torch.randn_like(keys)
    clean, _ = network.estimate(keys, keys, level)
    carried, _ = network.estimate(keys + wrong, keys, level)
    torch.testing.assert_close(
        carried - clean, lerp_keyframes(wrong, INSERTED), atol=1e-5, rtol=1e-5
    )


def test_training_compares_the_outputs_of_both_networks(inputs):
    network = make_interpolator()
    randomise(network)
    few = {name: value[1::2] for name, value in inputs.items()}
    middle, keys, level = inputs["residuals"], inputs["keys"], inputs["noise_level"]
    clean = keys + torch.randn_like(keys)
    output = network(
        middle, clean, keys, level, lambda x: 2 * x, few["timestep"], few["tokens"], few["fps"]
    )
    estimated, unit = network.estimate(clean, keys, level)
    blended, close = lerp_keyframes(clean, INSERTED), {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(output.residual_target, (middle - blended) / unit)
    torch.testing.assert_close(output.residual_estimate, (estimated - blended) / unit, **close)
    torch.testing.assert_close(
        output.diffusion_target, ((middle - estimated) / unit)[1::2], **close
    )
    noisy = few | {"residuals": 2 * output.diffusion_target}
    torch.testing.assert_close(output.diffusion_prediction, network.denoise(**noisy))
    assert output.diffusion_prediction.shape == (3, INSERTED, CHANNELS, 4, 6)
    assert output.residual_estimate.shape == (7, INSERTED, CHANNELS, 4, 6)
    # the U-Net's error is not the estimate's to mend
    gradients = torch.autograd.grad(
        output.diffusion_prediction.sum(), list(network.correction.parameters()), allow_unused=True
    )
    assert set(gradients) == {None}


def test_the_keyframe_distance_is_computed_for_each_gap():
    keys = torch.zeros(2, 2, CHANNELS, 4, 6)
    keys[0, 1] = 0.5
    torch.testing.assert_close(keyframe_rms_distance(keys).flatten(), torch.tensor([0.53, 0.03]))


def test_a_noise_level_is_refused_by_networks_trained_without_it(inputs):
    unet, given = make_interpolator().unet, inputs
    latents = torch.randn(7, INSERTED + 2, 3 * CHANNELS + 1, 4, 6)
    with pytest.raises(ValueError, match="noise_level"):
        unet(latents, given["timestep"], given["tokens"], given["fps"])

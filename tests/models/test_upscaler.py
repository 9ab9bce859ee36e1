import pytest
import torch
from networks import randomise
from torch.nn import functional as F

from magicvideo.models.upscaler import Upscaler, upsample_bicubic

FRAMES, HEIGHT, WIDTH = 3, 8, 12


def make_upscaler(**changes):
    config = {"widths": (6, 8, 10), "num_blocks": (1, 2, 1), "residual_scale": 0.07}
    return Upscaler(**{**config, **changes})


def make_inputs(frames=FRAMES, height=HEIGHT, width=WIDTH, factor=4):
    """Noisy residuals, small frames, timesteps and noise levels, as the network takes them."""
    return (
        torch.randn(frames, 3, factor * height, factor * width),
        torch.rand(frames, 3, height, width) * 2 - 1,
        torch.arange(frames) * 400 + 17,
        torch.linspace(0, 0.2, frames),
    )


@torch.no_grad()
def test_a_fresh_network_predicts_nothing():
    assert make_upscaler()(*make_inputs()).eq(0).all()


@pytest.mark.parametrize("place", range(4))
@torch.no_grad()
def test_every_input_is_read(place):
    network, inputs = randomise(make_upscaler()), list(make_inputs())
    before = network(*inputs)
    assert before.shape == inputs[0].shape
    inputs[place] = inputs[place] * 2 + 1
    assert ((network(*inputs) - before).flatten(1).abs().amax(dim=1) > 1e-3).all()


@torch.no_grad()
def test_every_level_has_a_skip_connection():
    """Without the lower levels, both halves of the other levels still depend on the small frame."""
    network, inputs = randomise(make_upscaler()), list(make_inputs())
    for level in (1, 0):
        for parameter in network.upsamplers[level].parameters():
            parameter.zero_()
        before = network(*inputs)
        changed = [inputs[0], -inputs[1], *inputs[2:]]
        assert (network(*changed) - before).abs().amax() > 1e-3


@torch.no_grad()
def test_frames_are_independent():
    network, inputs = randomise(make_upscaler()), make_inputs()
    together = network(*inputs)
    for i in range(FRAMES):
        alone = network(*(value[i : i + 1] for value in inputs))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("widths", "num_blocks", "radius"),
    [((5, 7), (1, 1), 11), ((6, 8, 10), (1, 2, 1), 33), ((4, 6, 8), (2, 1, 0), 21)],
)
@torch.no_grad()
def test_the_receptive_field_is_the_stated_one(widths, num_blocks, radius):
    """Change one small pixel at every position of the network's grid, and measure its effect."""
    network = randomise(make_upscaler(widths=widths, num_blocks=num_blocks)).double()
    assert network.receptive_radius == radius
    multiple, length = network.size_divisor, 2 * radius + 2 * network.size_divisor
    length += -length % multiple
    reach = set()
    for place in range(length // 2, length // 2 + multiple):
        for axis in (2, 3):
            noisy, small, timestep, level = make_inputs(1, length, multiple)
            if axis == 3:
                noisy, small = noisy.mT, small.mT
            before = network(noisy.double(), small.double(), timestep, level.double())
            changed = small.clone()
            changed.select(axis, place)[:] += 1
            after = network(noisy.double(), changed.double(), timestep, level.double())
            seen = (after != before).any(dim=1).any(dim=5 - axis - 1)[0].nonzero()[:, 0] // 4
            reach |= {int(place - seen.min()), int(seen.max() - place)}
    assert max(reach) == radius


@torch.no_grad()
def test_the_receptive_field_on_noisy_pixels_is_not_larger_than_on_small_pixels():
    network = randomise(make_upscaler(widths=(4, 6), num_blocks=(1, 1))).double()
    noisy, small, timestep, level = make_inputs(1, 4, 40)
    noisy, small, level = noisy.double(), small.double(), level.double()
    changed = noisy.clone()
    changed[..., 80] += 1
    seen = (network(changed, small, timestep, level) != network(noisy, small, timestep, level)).any(
        dim=(0, 1, 2)
    )
    places = seen.nonzero()[:, 0] // 4
    assert places.min() >= 20 - network.receptive_radius
    assert places.max() <= 20 + network.receptive_radius
    assert places.max() - places.min() > network.receptive_radius


@torch.no_grad()
def test_the_gain_multiplies_the_noisy_residual_per_pixel():
    """The gain multiplies the noisy residual pixel by pixel."""
    network, (noisy, *told) = make_upscaler(), make_inputs()
    network.gain_out.bias.copy_(torch.linspace(0.1, 0.5, 48))
    gains = F.pixel_shuffle(network.gain_out.bias.reshape(1, 48, 1, 1), 4).tile(1, 1, HEIGHT, WIDTH)
    torch.testing.assert_close(network(noisy, *told), gains * noisy)


@torch.no_grad()
def test_upsampling_keeps_flat_frames_and_means():
    flat = torch.tensor([0.4, -0.9, 0.1])[None, :, None, None].expand(2, 3, 5, 7)
    torch.testing.assert_close(upsample_bicubic(flat, 4), flat[..., :1, :1].expand(2, 3, 20, 28))
    ramp = torch.arange(12.0).expand(1, 3, 5, 12) / 12
    inner = upsample_bicubic(ramp, 4)[..., 12:-12]
    expected = (torch.arange(48.0)[12:-12] - 1.5) / 48
    # the kernel bends a ramp a little; a shift by one pixel would be 0.02
    torch.testing.assert_close(inner, expected.expand_as(inner), atol=0.005, rtol=0)


@torch.no_grad()
def test_loads_from_the_folder_it_was_saved_to(tmp_path):
    network, inputs = randomise(make_upscaler()), make_inputs()
    network.save_pretrained(tmp_path)
    again = Upscaler.from_pretrained(tmp_path)
    assert torch.equal(again(*inputs), network(*inputs))
    assert (again.config.residual_scale, again.receptive_radius) == (0.07, network.receptive_radius)


def test_the_default_is_small_enough_for_a_cpu():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = Upscaler()
        network(
            torch.empty(1, 3, 256, 256), torch.empty(1, 3, 64, 64), torch.zeros(1), torch.zeros(1)
        )
    assert counter.get_total_flops() < 2.5e9
    assert 2e6 < sum(parameter.numel() for parameter in network.parameters()) < 4e6


def test_learns_in_channels_last():
    """Every parameter gets a gradient once the output is not zero."""
    network = randomise(make_upscaler()).train().to(memory_format=torch.channels_last)
    network(*make_inputs()).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_errors_name_the_setting_that_does_not_fit():
    with pytest.raises(ValueError, match="2 widths and 3 numbers of blocks"):
        make_upscaler(widths=(6, 8))
    for height, width in ((10, WIDTH), (HEIGHT, 14)):
        with pytest.raises(ValueError, match="must be multiples of 4, the latter 4 times"):
            make_upscaler()(*make_inputs(height=height, width=width))
    with pytest.raises(ValueError, match="the latter 4 times as large"):
        make_upscaler()(*make_inputs(factor=2))

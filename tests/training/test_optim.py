import pytest
import torch
from torch import nn

from magicvideo.errors import UserError
from magicvideo.models.adaptor import FrameAdaptor
from magicvideo.training.optim import (
    build_optimizer,
    learning_rate_factor,
    optimizer_state_bytes,
    set_learning_rate,
)
from magicvideo.training.recipe import ImageStageConfig

SETTINGS = ImageStageConfig(
    steps=20, batch_size=1, learning_rate=0.5, warmup_steps=4, lr_decay_ratio=0.25, weight_decay=0.3
)


def test_the_learning_rate_warms_up_stays_constant_and_decays():
    factors = [learning_rate_factor(SETTINGS, step) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:16] == [1.0] * 12
    assert factors[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_more_steps_do_not_change_the_constant_phase():
    longer = SETTINGS.model_copy(update={"steps": 60})
    for step in range(15):
        assert learning_rate_factor(longer, step) == learning_rate_factor(SETTINGS, step)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.adaptor = FrameAdaptor(2, 5)
        self.frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)


def test_weight_decay_applies_only_to_kernels_and_frozen_parameters_are_excluded():
    network = Network()
    scales = {"conv.bias": 0.1}
    optimizer = build_optimizer(network, SETTINGS, lambda name: scales.get(name, 1.0))
    found = {
        id(parameter): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        id(network.conv.weight): (0.3, 0.5),
        id(network.conv.bias): (0.0, 0.05),
        id(network.adaptor.scale): (0.0, 0.5),
        id(network.adaptor.shift): (0.0, 0.5),
    }
    set_learning_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.025, 0.25]


def test_fused_update_in_channels_last_equals_the_plain_one():
    """The fused kernel iterates over memory, so moments need the memory format of the parameter."""
    fused, plain = Network(), Network()
    plain.load_state_dict(fused.state_dict())
    fused.to(memory_format=torch.channels_last)
    first = build_optimizer(fused, SETTINGS)
    second = torch.optim.AdamW(
        [
            {"params": [plain.conv.weight], "weight_decay": 0.3},
            {"params": [plain.conv.bias, *plain.adaptor.parameters()], "weight_decay": 0.0},
        ],
        lr=0.5,
        betas=(0.9, SETTINGS.beta2),
    )
    for seed in range(3):
        x = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(seed))
        for network, optimizer in ((fused, first), (plain, second)):
            network.adaptor(network.conv(x), 2).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def test_an_optimizer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("magicvideo.training.optim.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install bitsandbytes, or set optimizer=adamw"):
        build_optimizer(Network(), SETTINGS.model_copy(update={"optimizer": "adamw_8bit"}))


def test_adafactor_keeps_the_parameter_groups_and_less_state():
    network = Network()
    optimizer = build_optimizer(network, SETTINGS.model_copy(update={"optimizer": "adafactor"}))
    assert sorted({group["weight_decay"] for group in optimizer.param_groups}) == [0.0, 0.3]
    network.conv(torch.randn(2, 3, 7, 6)).square().sum().backward()
    before = network.conv.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, network.conv.weight)
    kept = sum(value.numel() for value in optimizer.state[network.conv.weight].values())
    assert kept < network.conv.weight.numel()
    # and the number of its step
    assert 4 * (kept - 1) == optimizer_state_bytes(network.conv.weight.shape, "adafactor")

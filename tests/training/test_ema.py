import torch
from torch import nn

from magicvideo.training.checkpoint import EMA


def test_ema_weights_follow_the_formula():
    network = nn.Linear(3, 2)
    ema = EMA(network, decay=0.5)
    expected = network.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            network.weight.add_(step + 1)
        ema.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(ema.shadow["weight"], expected)


def test_swapping_twice_restores_the_weights():
    network = nn.Linear(3, 2)
    ema = EMA(network, decay=0.9)
    with torch.no_grad():
        network.weight.add_(1)
    weights, averages = network.weight.detach().clone(), ema.shadow["weight"].clone()
    ema.swap(network)
    assert torch.equal(network.weight, averages)
    ema.swap(network)
    assert torch.equal(network.weight, weights)
    assert torch.equal(ema.shadow["weight"], averages)


def test_ema_weights_on_the_cpu_are_the_same():
    network = nn.Linear(3, 2)
    beside, apart = EMA(network, 0.9), EMA(network, 0.9, torch.device("cpu"))
    assert apart.shadow["weight"].data_ptr() != network.weight.data_ptr()
    for step in range(3):
        with torch.no_grad():
            network.weight.add_(step + 1)
        beside.update(network, step)
        apart.update(network, step)
    assert torch.equal(beside.shadow["weight"], apart.shadow["weight"])
    assert not torch.equal(apart.shadow["weight"], network.weight)

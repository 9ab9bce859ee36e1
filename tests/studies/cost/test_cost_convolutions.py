"""Kinds of convolutions: their cost against manual counts."""

import pytest
import torch
from networks import FRAMES, SMALL
from torch import nn

from magicvideo.models.unet import VideoUNet
from studies.cost.networks import Workload
from studies.cost.page import cost_of

WORK = Workload(dict(SMALL), videos=1, frames=FRAMES, side=10, tokens=11, head_width=2)


@pytest.fixture(scope="module")
def costs():
    with torch.device("meta"), torch.no_grad():
        return {kind: cost_of(kind, WORK) for kind in ("2D", "2D + adaptor", "2+1D", "3D")}


def test_only_the_convolutions_differ(costs):
    first = costs["2D"]
    for cost in costs.values():
        kernels = cost.kernel_parameters - first.kernel_parameters
        assert cost.parameters - first.parameters == kernels
        assert cost.flops - first.flops == cost.kernel_flops - first.kernel_flops


def test_a_kernel_over_three_frames_costs_three_times(costs):
    assert costs["3D"].kernel_flops == 3 * costs["2D"].kernel_flops


def test_an_adaptor_costs_one_addition_and_one_multiplication_per_value(costs):
    # conv_in, 2 of the first level's block, its transformer's; the side of 10 throughout
    outside = 8 + 2 * 8 + 8
    # the same in the decoder half, with 2 blocks and the convolution after enlarging; conv_out
    outside += 2 * (2 * 8 + 8) + 12 + 7
    # a side of 5: the smaller convolution, the inner block, the middle with 2 blocks and one
    # transformer, and 2 blocks of the decoder half
    inside = 8 + 2 * 12 + (4 * 12 + 12) + 2 * 2 * 12
    difference = costs["2D + adaptor"].kernel_flops - costs["2D"].kernel_flops
    assert difference == 2 * FRAMES * (outside * 100 + inside * 25)
    parameters = costs["2D + adaptor"].kernel_parameters - costs["2D"].kernel_parameters
    assert parameters == 2 * FRAMES * (outside + inside)


def test_a_factorised_kernel_adds_one_along_time(costs):
    convolutions = [
        module.out_channels
        for module in VideoUNet(**SMALL).modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    parameters = costs["2+1D"].kernel_parameters - costs["2D"].kernel_parameters
    assert parameters == sum(3 * channels**2 + channels for channels in convolutions)

"""VDM's network against a manual count at a small size."""

from dataclasses import replace

import pytest
import torch

from studies.cost.page import count_vdm
from studies.cost.vdm import VdmSettings, VdmUNet

TINY = VdmSettings(32, (1,), 3, 4, frozenset(), head_width=16)
CHANNELS, POSITIONS = 32, 3 * 4 * 4


def residual_block(before, after=CHANNELS):
    kernels = 9 * (before * after + after * after) + (before * after if before != after else 0)
    return 2 * (POSITIONS * kernels + 1024 * after)


def both_attentions():
    linear = POSITIONS * 4 * CHANNELS**2  # queries, keys, values, output
    spatial, temporal = 3 * 16 * 16, 16 * 3 * 3
    return 2 * (2 * linear + 2 * (spatial + temporal) * CHANNELS)


def test_blocks_of_both_halves():
    ends = 2 * POSITIONS * 9 * 2 * 3 * CHANNELS
    mlp = 2 * (CHANNELS * 1024 + 3 * 1024**2)
    _, flops = count_vdm(TINY)
    narrow, wide = residual_block(CHANNELS), residual_block(2 * CHANNELS)
    assert flops.least == ends + mlp + 4 * narrow + 2 * wide
    assert flops.most == flops.least + wide


def test_attention_follows_each_block_at_the_given_sides():
    _, without = count_vdm(TINY)
    _, everywhere = count_vdm(replace(TINY, attention_sides=frozenset({4})))
    # two blocks of the encoder, one in the middle, two or three of the decoder
    assert everywhere.least - without.least == 5 * both_attentions()
    assert everywhere.most - without.most == 6 * both_attentions()


@pytest.mark.parametrize("up_blocks", [2, 3])
def test_it_computes_a_video_of_its_input_shape(up_blocks):
    settings = VdmSettings(32, (1, 2, 3), 5, 8, frozenset({2, 4}), 16, up_blocks=up_blocks)
    noisy, log_snr = torch.randn(2, 3, 5, 8, 8), torch.randn(2)
    network = VdmUNet(settings)
    made = network(noisy, log_snr)
    assert made.shape == noisy.shape
    made.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())

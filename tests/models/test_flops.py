"""The FLOP counter against manual counts."""

import pytest
import torch
from networks import SMALL, make_inputs
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from magicvideo.models.flops import (
    count_flops,
    count_parameters,
    profile_forward,
    profile_training_step,
)
from magicvideo.models.unet import VideoUNet


def test_a_convolution_counts_its_kernel_at_every_output():
    parameters, flops = profile_forward(
        lambda: nn.Conv2d(5, 7, 3, stride=2, padding=1), lambda conv: conv(torch.empty(2, 5, 11, 6))
    )
    assert parameters == 7 * 5 * 9 + 7
    assert flops.convolutions == flops.total == 2 * (2 * 6 * 3) * (7 * 5 * 9)


def test_a_linear_layer_counts_its_matrix_for_every_row():
    _, flops = profile_forward(lambda: nn.Linear(5, 7), lambda layer: layer(torch.empty(2, 3, 5)))
    assert flops.linear == flops.total == 2 * (2 * 3) * (5 * 7)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_counts_two_products_and_a_mask_saves_nothing(causal):
    class Attention(nn.Module):
        def forward(self, q, k):
            return F.scaled_dot_product_attention(q, k, k, is_causal=causal)

    q, k = torch.empty(2, 3, 5, 7, device="meta"), torch.empty(2, 3, 11, 7, device="meta")
    attention = Attention()
    flops = count_flops(attention, lambda: attention(q, k))
    assert flops.attention == flops.total == 2 * (2 * (2 * 3) * 5 * 11 * 7)


def test_a_backward_pass_costs_twice_the_forward_pass_without_unused_gradients():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(5, 7, 3), nn.Conv2d(7, 11, 3))
        x = torch.empty(2, 5, 9, 6)
    first, second = 2 * 2 * 7 * 4 * 7 * 5 * 9, 2 * 2 * 5 * 2 * 11 * 7 * 9
    flops = count_flops(network, lambda: torch.autograd.backward(network(x).sum()))
    # nothing asks for the gradient of the pixels
    assert flops.convolutions == 2 * first + 3 * second
    assert flops.by_module == {
        "Sequential": flops.total,
        "Sequential.0": 2 * first,
        "Sequential.1": 3 * second,
    }


def test_a_network_off_meta_is_refused():
    network = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="is on cpu"):
        count_flops(network, lambda: network(torch.zeros(1, 2)))
    assert count_parameters(network) == 9


def test_a_training_pass_saves_the_tensors_of_its_backward_pass():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 3))
        x = torch.empty(2, 5)
    passed = profile_training_step(network, lambda: network(x).sum())
    # the input, and what leaves the sigmoid, which both neighbours read: once
    assert (passed.saved_activation_numel, passed.saved_other_bytes) == (2 * 5 + 2 * 7, 0)
    first, second = 2 * 2 * 5 * 7, 2 * 2 * 7 * 3
    assert (passed.forward, passed.backward) == (first + second, first + 2 * second)


def test_frozen_layers_save_nothing_and_cost_no_backward_pass():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 3))
        x = torch.empty(2, 5)
    network[0].requires_grad_(requires_grad=False)
    passed = profile_training_step(network, lambda: network(x).sum())
    assert (passed.saved_activation_numel, passed.backward) == (2 * 7, 2 * 2 * 7 * 3)


def test_masks_are_counted_in_bytes():
    with torch.device("meta"):
        network, x = nn.Linear(5, 7), torch.empty(2, 5)
        shown = torch.zeros(2, 7, dtype=torch.bool)
    passed = profile_training_step(network, lambda: torch.where(shown, network(x), 0.0).sum())
    assert (passed.saved_activation_numel, passed.saved_other_bytes) == (2 * 5, 2 * 7)


@pytest.mark.parametrize("named", [False, True])
def test_attention_saves_its_inputs_and_output_and_no_weights(named):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Parameter(torch.empty(2, 3, 5, 7))

        def forward(self, k, v):
            q = self.q.sigmoid()
            if named:
                return F.scaled_dot_product_attention(query=q, key=k, value=v)
            return F.scaled_dot_product_attention(q, k, v)

    with torch.device("meta"):
        attention = Attention()
        k, v = torch.empty(2, 3, 11, 7), torch.empty(2, 3, 11, 7)
    passed = profile_training_step(attention, lambda: attention(k, v).sum())
    # queries are what leaves the sigmoid, which keeps them too
    assert passed.saved_activation_numel == 2 * 3 * 7 * (5 + 11 + 11 + 5)


def test_the_counted_activations_of_a_video_network_equal_those_on_a_cpu():
    with torch.device("meta"):
        outline, given = VideoUNet(**SMALL), [tensor.to("meta") for tensor in make_inputs()]
    counted = profile_training_step(outline, lambda: outline(*given).sample.sum())
    network, kept = VideoUNet(**SMALL), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def note(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        network(*make_inputs()).sample.sum()
    sizes = [t.untyped_storage().nbytes() for place, t in kept.items() if place not in own]
    # a CPU's attention is fused, too; its kernels lay out some inputs in another way
    assert 4 * counted.saved_activation_numel == pytest.approx(sum(sizes), rel=0.05)

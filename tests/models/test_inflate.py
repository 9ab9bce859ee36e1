import pytest
import torch
from networks import make_unet

from magicvideo.errors import UserError
from magicvideo.models.inflate import inflate, is_temporal_key

IMAGE = {"temporal_attention": "none", "frame_adaptor": False}


@pytest.fixture(scope="module")
def image_weights():
    torch.manual_seed(4)
    state = make_unet(**IMAGE).state_dict()
    return {name: tensor for name, tensor in state.items() if not is_temporal_key(name)}


def copied(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_every_tensor_is_copied_or_new(image_weights):
    network = make_unet()
    before = copied(network)
    inflation = inflate(network, image_weights)
    assert sorted(inflation.copied + inflation.new) == sorted(before)
    assert sorted(inflation.copied) == sorted(image_weights)
    after = network.state_dict()
    for name in inflation.copied:
        assert torch.equal(after[name], image_weights[name]), name
    for name in inflation.new:
        assert torch.equal(after[name], before[name]), name
        assert is_temporal_key(name), name


def test_tensors_of_half_precision_fit(image_weights):
    network = make_unet()
    inflate(network, {name: tensor.half() for name, tensor in image_weights.items()})
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_weights_of_a_video_network_include_the_temporal_layers():
    source, network = make_unet(), make_unet()
    inflation = inflate(network, source.state_dict())
    assert inflation.new == []
    assert all(torch.equal(network.state_dict()[k], v) for k, v in source.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda weights: {**weights, "class_embedding.weight": torch.zeros(3)},
            "class_embedding.weight of the image network does not exist",
        ),
        (
            lambda weights: {**weights, "conv_out.bias": torch.zeros(5)},
            r"conv_out.bias has the shape \[5\] in the image network and \[7\] in the video",
        ),
        (
            lambda weights: {k: v for k, v in weights.items() if k != "conv_out.bias"},
            "The image network lacks conv_out.bias",
        ),
    ],
    ids=["foreign", "other shape", "missing"],
)
def test_a_refusal_names_the_tensor_and_copies_nothing(image_weights, spoil, message):
    network = make_unet()
    before = copied(network)
    with pytest.raises(UserError, match=message):
        inflate(network, spoil(image_weights))
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)

"""The architectures that are written here, against other implementations of them.

The expected numbers come from torch-fidelity 0.4.0 and from cd-fvd 0.1.1 with the same weights; the
lists of names were equal.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from magicvideo.errors import UserError
from magicvideo.evaluation.networks.extractors import I3D, Inception, load_weights, locate_file
from magicvideo.evaluation.networks.i3d import KineticsI3d
from magicvideo.evaluation.networks.inception import FidInception, resize_as_tensorflow

CPU = torch.device("cpu")


def drawn(name, shape, rng):
    if name.endswith(("running_var", "bn.weight")):
        return rng.uniform(0.5, 1.5, shape)
    scale = 0.1 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5
    return rng.normal(size=shape) * scale


def store(kind, path):
    """Write weights that numpy draws, the same everywhere, for each name in alphabetical order."""
    with torch.device("meta"):
        outline = kind().state_dict()
    names = sorted(name for name in outline if not name.endswith("num_batches_tracked"))
    save_file(
        {
            name: torch.from_numpy(
                drawn(name, outline[name].shape, np.random.default_rng(place))
            ).float()
            for place, name in enumerate(names)
        },
        path,
    )
    return locate_file(str(path), "a network")


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    return store(KineticsI3d, tmp_path_factory.mktemp("i3d") / "weights.safetensors")


def test_inception_equals_that_of_torch_fidelity(tmp_path):
    pixels = np.random.default_rng(7).integers(0, 256, (2, 3, 70, 95), dtype=np.uint8)
    network = Inception(store(FidInception, tmp_path / "x.safetensors"), CPU)
    found, guessed = network.extract(torch.from_numpy(pixels)[:1])
    assert found.shape == (1, 2048)
    expected = [0.020983052, 0.91896224, 0.58990252, 2.1238322]
    assert found[0, :4] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert guessed.shape == (1, 1008)
    assert guessed.argmax() == 492
    assert guessed.max() == pytest.approx(0.6064, abs=1e-4)


def test_i3d_equals_that_of_cd_fvd(i3d):
    network = I3D(i3d, CPU)
    video = np.random.default_rng(8).uniform(-1, 1, (1, 3, 10, 224, 224)).astype(np.float32)
    found = network.features(torch.from_numpy(video[0].swapaxes(0, 1)))
    assert found.shape == (400,)
    expected = [-2.1333213, 6.5638814, 12.348611, -1.6211739]
    assert found[:4] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert (found.mean(), found.std()) == pytest.approx((-0.163688, 11.640949), abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "parameters", "tensors"),
    # Keras counts 23,817,352 trained ones of 1,000 classes without the 17,216 scales of the norms;
    # OpenVINO's model zoo 12.69 million
    [(FidInception, 23_817_352 + 17_216 + 8 * 2049, 566), (KineticsI3d, 12_697_264, 344)],
)
def test_the_published_number_of_parameters(kind, parameters, tensors):
    with torch.device("meta"):
        network = kind()
    assert sum(tensor.numel() for tensor in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


def test_every_tensor_of_a_file_is_accounted_for(i3d, tmp_path):
    weights = load_file(i3d.path)
    lacking, strange, turned = (dict(weights) for _ in range(3))
    del lacking["Mixed_5c.b3b.bn.bias"]
    strange["Mixed_6a.b0.bn.bias"] = torch.zeros(5)
    turned["logits.conv3d.weight"] = weights["logits.conv3d.weight"].swapaxes(0, 1).contiguous()
    path = tmp_path / "x.safetensors"
    for state, sentence in (
        (lacking, r"lacks the tensor Mixed_5c\.b3b\.bn\.bias"),
        (strange, r"contains the unknown tensor Mixed_6a\.b0\.bn\.bias"),
        (turned, r"holds logits\.conv3d\.weight with shape \[1024, 400, 1, 1, 1\]"),
    ):
        save_file(state, path)
        with pytest.raises(UserError, match=sentence):
            I3D(locate_file(str(path), "I3D"), CPU)
    path.write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="is not a safetensors file"):
        Inception(locate_file(str(path), "Inception-v3"), CPU)


def test_half_precision_and_training_counters_are_accepted(i3d, tmp_path):
    weights = {name: tensor.half() for name, tensor in load_file(i3d.path).items()}
    weights["Conv3d_2b_1x1.bn.num_batches_tracked"] = torch.tensor(3)
    save_file(weights, tmp_path / "half.safetensors")
    located = locate_file(str(tmp_path / "half.safetensors"), "I3D")
    network = load_weights(KineticsI3d(), located)
    assert not network.training
    bias = network.logits["conv3d"].bias
    assert bias.dtype == torch.float32
    assert torch.equal(bias, weights["logits.conv3d.bias"].float())


def test_resizing_samples_the_positions_of_tensorflow():
    frames = torch.rand(1, 2, 6, 10)
    assert torch.equal(resize_as_tensorflow(frames, 2)[0, 0], frames[0, 0, ::3, ::5])
    line = torch.tensor([0.0, 10.0, 20.0]).view(1, 1, 1, 3).expand(1, 1, 2, 3)
    found = resize_as_tensorflow(line, 6)[0, 0, 0]
    assert found.tolist() == pytest.approx([0, 5, 10, 15, 20, 20])  # nothing beyond the edge

import os
import sys
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from magicvideo.atomic_io import hash_files, sha256
from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.distribution import fit_gaussian, frechet_distance
from magicvideo.evaluation.networks.extractors import I3D, Inception, locate_file, locate_folder

CPU = torch.device("cpu")
REAL_I3D = os.environ.get("MAGICVIDEO_I3D")


class Telltale(nn.Module):
    """Returns what it was given: shape, range and a few pixels."""

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        sizes = [float(side) for side in x.shape[1:]]
        flags = [float(flag) for flag in (rescale, resize, return_features)]
        ends = torch.stack([x.min(), x.max(), x[0, 2, 1].mean()])
        return torch.cat([torch.tensor(sizes + flags), ends])[None]


class Echo(nn.Module):
    def forward(
        self, img: Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        flags = torch.tensor([float(return_features), float(no_output_bias)])
        return torch.cat([img.float().mean(dim=[2, 3]), flags.expand(len(img), 2)], dim=1)


def scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return locate_file(str(path), "a network")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="TorchScript is gone there")
def test_i3d_is_called_like_the_published_network(tmp_path):
    located = scripted(Telltale(), tmp_path / "i3d.pt")
    assert located.sha256 == sha256(tmp_path / "i3d.pt")
    video = torch.full((11, 3, 20, 30), -1.0)
    video[1, 2] = 0.5
    found = I3D(located, CPU).features(video)
    assert found.tolist() == pytest.approx([3, 11, 224, 224, 0, 0, 1, -1, 0.5, 0.5], abs=1e-6)
    with pytest.raises(UserError, match="clips of 10 frames or more, not 9"):
        I3D(located, CPU).features(video[:9])


def test_inception_gives_features_and_probabilities(tmp_path):
    network = Inception(scripted(Echo(), tmp_path / "inception.pt"), CPU)
    frames = torch.tensor([7, 40, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 5, 6)
    features, probabilities = network.extract(frames)
    assert features.tolist() == [[7, 40, 90, 1, 0]] * 2
    assert probabilities.tolist() == [[7, 40, 90, 0, 1]] * 2


def test_a_file_that_is_not_torchscript_or_another_network_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"not a network")
    with pytest.raises(UserError, match=r"x\.pt is not a TorchScript file"):
        I3D(locate_file(str(tmp_path / "x.pt"), "I3D"), CPU)
    with pytest.raises(UserError, match=r"e\.pt cannot be called with rescale, resize"):
        I3D(scripted(Echo(), tmp_path / "e.pt"), CPU).features(torch.zeros(10, 3, 8, 9))


def test_only_a_hub_id_reaches_the_hub(tmp_path, monkeypatch):
    asked = []

    def give(identity, file, revision):
        asked.append((identity, file, revision))
        path = tmp_path / "given.pt"
        path.write_bytes(b"weights")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    with pytest.raises(UserError, match=r"owner/name/i3d\.pt is not a file"):
        locate_file("owner/name/i3d.pt", "I3D")
    assert asked == []
    found = locate_file("hub:owner/name/sub/i3d.pt@v2", "I3D")
    assert asked == [("owner/name", "sub/i3d.pt", "v2")]
    assert found.name == "hub:owner/name/sub/i3d.pt@v2"
    assert found.sha256 == sha256(tmp_path / "given.pt")


def test_earlier_downloads_are_found_in_the_hub_cache(tmp_path, monkeypatch):
    """The hub's own code on a cache in its format; no network access."""
    revision = "0123456789" * 4
    folder = tmp_path / "models--owner--name" / "snapshots" / revision
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "i3d.safetensors").write_bytes(b"weights")
    (folder / "model.safetensors").write_bytes(b"others")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    file = locate_file(f"hub:owner/name/sub/i3d.safetensors@{revision}", "I3D")
    assert file.path.read_bytes() == b"weights"
    assert file.path.suffix == ".safetensors"
    clip = locate_folder(f"hub:owner/name@{revision}", "CLIP")
    assert (clip.path, clip.sha256) == (folder, hash_files(folder, ["model.safetensors"]))
    with pytest.raises(UserError, match=r"name/i3d\.pt cannot be had from the hub"):
        locate_file("hub:owner/name/i3d.pt", "I3D")
    with pytest.raises(UserError, match="cannot be had from the hub"):
        locate_folder("hub:owner/other", "CLIP")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "merges.txt"])
def test_the_hash_of_clip_covers_everything_that_affects_its_output(tmp_path, name):
    for file in ("model.safetensors", "config.json", "merges.txt", "README.md", "other.bin"):
        (tmp_path / file).write_text(file)
    before = locate_folder(str(tmp_path), "CLIP").sha256
    (tmp_path / "README.md").write_text("Another text.")
    assert locate_folder(str(tmp_path), "CLIP").sha256 == before
    (tmp_path / name).write_text("Another text.")
    assert locate_folder(str(tmp_path), "CLIP").sha256 != before


@pytest.mark.skipif(REAL_I3D is None, reason="MAGICVIDEO_I3D does not name i3d_torchscript.pt")
@pytest.mark.parametrize(
    ("count", "frames", "expected", "slack"), [(16, 15, 131, 0.03), (8, 30, 151.26, 0.002)]
)
def test_black_against_white_by_the_real_i3d(count, frames, expected, slack):
    network = I3D(locate_file(str(Path(REAL_I3D)), "I3D"), CPU)
    sides = [
        np.repeat(network.features(torch.full((frames, 3, 64, 64), level))[None], count, axis=0)
        for level in (-1.0, 1.0)
    ]
    found = frechet_distance(*map(fit_gaussian, sides))
    assert found == pytest.approx(expected, rel=slack)

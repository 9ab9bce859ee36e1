"""Tiny networks with the interfaces of the published ones, and a tiny benchmark."""

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

PROJECTION = 9


class TinyI3D(nn.Module):
    """400 logits of a clip; other outputs differ from the raw logits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(6, 400))

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        assert not rescale
        assert not resize
        assert return_features
        assert x.shape[3] == 224
        assert x.shape[4] == 224
        assert x.min() >= -1.001
        pooled = torch.cat([x.mean(dim=[2, 3, 4]), x.diff(dim=2).abs().mean(dim=[2, 3, 4])], dim=1)
        return pooled @ self.weight


class TinyInception(nn.Module):
    """Features or probabilities of frames in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(3, 6))

    def forward(
        self, img: Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        assert img.dtype == torch.uint8
        features = img.float().mean(dim=[2, 3]) @ self.weight
        if return_features:
            return features
        assert no_output_bias
        return (features[:, :5] / 60).softmax(dim=1)


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> dict[str, Path]:
    """The files of three tiny networks."""
    from tiny_model import make_tiny_pipeline

    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name, module in (("i3d", TinyI3D()), ("inception", TinyInception())):
            torch.jit.script(module).save(str(folder / f"{name}.pt"))
    pipeline = make_tiny_pipeline()
    config = CLIPConfig(
        text_config=pipeline.text_encoder.config.to_dict() | {"projection_dim": PROJECTION},
        vision_config=pipeline.image_encoder.config.to_dict() | {"projection_dim": PROJECTION},
        projection_dim=PROJECTION,
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    pipeline.tokenizer.save_pretrained(folder / "clip")
    return {
        "i3d": folder / "i3d.pt",
        "inception": folder / "inception.pt",
        "clip": folder / "clip",
    }


@pytest.fixture
def values() -> dict:
    """A benchmark on the seven videos of moving shapes; change what a test needs."""
    return {
        "kind": "benchmark",
        "name": "tiny-bench",
        "version": 3,
        "about": "Made up.",
        "data": "msr-vtt",
        "seed": 2,
        "prompts": {"kind": "one_caption", "split": "train", "count": 4},
        "generation": {
            "stages": ["keyframes", "interpolation"],
            "num_inference_steps": 1,
            "video_fps": 24,
        },
        "reference": {"split": "train", "count": 6},
        "preprocessing": {
            "frames": 10,
            "stride": 1,
            "crop": "centre",
            "side": 32,
            "filter": "bilinear",
            "image_frames": 2,
        },
        "statistics": {
            "covariance_divisor": "n-1",
            "neighbours": 1,
            "seed": 4,
            "resamples": 2,
            "extrapolate": False,
        },
    }


@pytest.fixture
def write(tmp_path):
    """A function that writes a protocol and returns its path."""

    def write(values: dict) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write

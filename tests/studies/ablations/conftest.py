"""Ablations so small that their models are trained and scored in seconds."""

import pytest
import yaml
from tiny_recipe import SHARED, tiny_values

from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources import folder
from studies.ablations.settings import read_ablations

SEED = 3


@pytest.fixture
def values(prepared, tmp_path):
    """The file as a mapping: two denoisers that share an image network, and a third name."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_values(prepared, tmp_path / "unused")))
    return {
        "name": "tiny",
        "about": "Tiny models.",
        "recipe": str(recipe),
        "output": str(tmp_path / "runs"),
        "scores": str(tmp_path / "scores"),
        "seeds": [SEED],
        "common": {
            "unsupervised": None,
            "interpolation": None,
            "video_vae": None,
            "autoencoder": {"steps": 1},
            "clip": {"steps": 1},
            "image": {"steps": 2},
            "keyframes": {"steps": 3},
        },
        "scoring": {
            "split": "train",
            "num_frames": 4,
            "stride": 2,
            "loss_clips": 4,
            "timesteps": [199, 999],
            "prompts": 3,
            "num_inference_steps": 2,
            "pool_size": 2,
            "reference_clips": 2,
            "decoder_clips": 2,
            "decoder_noise": [0.0, 0.2],
            "upscaler_clips": 2,
            "upscaler_steps": [1, 3],
            "moving_clips": 2,
            "moving_frames": 3,
        },
        "experiments": {
            "attention": {
                "title": "Attention along time",
                "about": "With and without it.",
                "baseline": "both",
                "variants": {
                    "both": {"label": "both kinds"},
                    "spatial": {
                        "label": "no time",
                        "changes": {"unet": {"temporal_attention": "none"}},
                    },
                },
            },
            "convolutions": {
                "title": "Convolutions",
                "about": "At equal operations.",
                "budget": "cost",
                "baseline": "plain",
                "variants": {
                    "plain": {"label": "2D", "same_as": "attention/both"},
                    "3d": {
                        "label": "3D",
                        "changes": {
                            "unet": {"convolutions": "3d"},
                            "keyframes": {"steps": 50},
                        },
                    },
                },
            },
        },
    }


@pytest.fixture
def decoders():
    """An experiment on decoders: one that sees a frame, and one that sees those before it."""
    return {
        "title": "Decoders",
        "about": "Of one frame and of several.",
        "paper": "Less dithering.",
        "found": "Nothing yet.",
        "model_kind": "decoder",
        "baseline": "frame",
        "common": {
            "clip": {"steps": 1},
            "image": None,
            "keyframes": None,
            "video_vae": {**SHARED, "steps": 2, "num_frames": 4, "temporal_heads": 2},
        },
        "variants": {
            "frame": {"label": "one", "changes": {"video_vae": {"temporal_window_size": 1}}},
            "video": {"label": "four", "changes": {"video_vae": {"temporal_window_size": 4}}},
        },
    }


@pytest.fixture
def upscalers(shapes, tmp_path):
    """An experiment on upscalers of two scales, on clips of which some are held out."""
    for name, size in (("small", 24), ("large", 64)):
        prepare(folder.scan(shapes, holdout=0.7), tmp_path / name, FrameSettings.square(size))
    upscaler = {
        "data": str(tmp_path / "large"),
        "steps": 2,
        "model": {"widths": [8, 12], "num_blocks": [1, 1]},
    }
    return {
        "title": "Upscalers",
        "about": "By scale.",
        "model_kind": "upscaler",
        "baseline": "four",
        "common": {
            "data": str(tmp_path / "small"),
            "keyframes": {"steps": 1},
            "upscaler": {**SHARED, **upscaler},
        },
        "variants": {
            "two": {"label": "times 2", "changes": _upscaler(crop=16, factor=2)},
            "four": {"label": "times 4", "changes": _upscaler(crop=32, factor=4)},
        },
    }


def _upscaler(*, crop, factor):
    return {"upscaler": {"crop": crop, "model": {"factor": factor}}}


@pytest.fixture
def write(tmp_path):
    """A function that writes the mapping as a file."""

    def write(values):
        path = tmp_path / "ablations.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@pytest.fixture
def found(values, write):
    return read_ablations(write(values))

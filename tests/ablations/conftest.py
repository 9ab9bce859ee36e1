"""A file of ablations so small that its models train and are scored in seconds."""

import pytest
import yaml
from tiny_recipe import tiny_values

from magicvideo.ablations.settings import read_ablations

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

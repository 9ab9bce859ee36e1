import numpy as np
import pytest
import torch
from einops import rearrange

from magicvideo.pipelines.request import Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline


@pytest.fixture(scope="session")
def pipeline(tiny_model):
    """The tiny model, loaded; tests leave it as it is."""
    return MagicVideoPipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def request_of():
    """A function that returns a request with some values changed."""

    def make(**changes):
        values = {
            "prompt": "a cät\nsays \"hi\"; it's 'fine' \\ = # 猫",
            "negative_prompt": "dog",
            "image_condition": None,
            "seed": 11,
            "num_frames": 5,
            "fps": 7.0,
            "num_inference_steps": 3,
            "guidance_scale": 2.5,
            "scheduler": "ddim",
            "output_scale": 2,
            "stages": ("keyframes",),
            "num_inserted": 0,
            "interpolation_steps": 2,
            "upscaler_steps": 1,
            "model": "ab" * 32,
            "device": "cpu",
            "threads": 1,
            "version": "0.1.0",
        }
        return Request(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def moving_square():
    """Five frames of 18x26: a red square wanders over blue."""
    pixels = np.zeros((5, 18, 26, 3), np.uint8)
    pixels[:] = (30, 60, 200)
    for index in range(5):
        pixels[index, 4:12, 2 + 3 * index : 10 + 3 * index] = (230, 40, 20)
    return rearrange(torch.from_numpy(pixels).float() / 127.5 - 1, "f h w c -> f c h w")

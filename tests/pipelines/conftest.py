import pytest

from magicvideo.pipelines.request import Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline


@pytest.fixture(scope="session")
def pipeline(tiny_model):
    """The tiny model, loaded; tests leave it as it is."""
    return MagicVideoPipeline.from_pretrained(tiny_model)


@pytest.fixture(autouse=True)
def _keep_model_hash(request):
    """Saving changes a pipeline's hash to that of the folder; this restores it for other tests."""
    if "pipeline" not in request.fixturenames:
        yield
        return
    loaded = request.getfixturevalue("pipeline")
    model_hash = loaded.model_hash
    yield
    loaded.model_hash = model_hash


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
            "guidance_stop": 1.0,
            "height": 24,
            "width": 24,
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

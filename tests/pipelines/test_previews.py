"""Previews of the estimated clean latents."""

import pytest
import torch
from tiny_model import FRAMES, LATENT_SIDE

from magicvideo.pipelines.text_to_video import MagicVideoPipeline

KEYS = {"stages": ("keyframes",), "num_inference_steps": 3, "seed": 3}
numpy_habit = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def pipe(tiny_model):
    """A separate pipeline, which the test may change."""
    return MagicVideoPipeline.from_pretrained(tiny_model)


def estimates(pipe, **settings):
    seen = []

    def keep(_pipeline, _step, _timestep, tensors):
        seen.append(tensors["pred_original_sample"].clone())
        return {}

    output = pipe(
        "a cat",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
        output_type="latent",
        progress=lambda *_: None,
        **{**KEYS, **settings},
    )
    return seen, output.frames


def test_the_estimate_of_the_last_step_is_what_it_makes(pipe):
    seen, latents = estimates(pipe)
    assert len(seen) == 3
    torch.testing.assert_close(seen[-1], latents, atol=1e-3, rtol=1e-3)


@numpy_habit
@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "euler", "lcm"])
def test_every_scheduler_has_the_same_first_estimate(pipe, scheduler):
    """All start from the same noise and timestep, so the network's first output is the same."""
    (expected, *_), _ = estimates(pipe)
    (found, *_), _ = estimates(pipe, scheduler=scheduler)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_reading_an_estimate_does_not_change_the_video(pipe):
    _, latents = estimates(pipe)
    plain = pipe("a cat", output_type="latent", progress=lambda *_: None, **KEYS)
    assert torch.equal(latents, plain.frames)


def test_a_preview_looks_like_the_frames(pipe, tmp_path):
    _, latents = estimates(pipe)
    shown = pipe.preview(latents)
    assert shown.shape == (1, FRAMES, 3, 4 * LATENT_SIDE, 4 * LATENT_SIDE)
    frames = pipe.decode(latents)
    pipe.fit_preview(frames)
    assert not torch.equal(pipe.preview(latents), shown)
    pipe.save_pretrained(tmp_path / "model")
    again = MagicVideoPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(again.preview(latents), pipe.preview(latents))
    # a map belongs to its autoencoder
    again.vae = pipe.vae
    assert again.latent_preview is None


def test_previews_work_where_stages_load_their_own_networks(tiny_model, pipe):
    offloaded = MagicVideoPipeline.from_pretrained(tiny_model, offload_device="cpu")
    latents = torch.randn(1, 2, pipe.unet.config.in_channels, 4, 4)
    assert torch.equal(offloaded.preview(latents), pipe.preview(latents))

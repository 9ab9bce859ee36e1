"""The held-out error against its formula."""

import numpy as np
import pytest
import torch
from tiny_model import FRAMES, SHARED_NOISE, make_tiny_pipeline

from magicvideo.diffusion.noise import initial_latent_noise
from magicvideo.errors import UserError
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from studies.ablations.denoising import measure_denoising_errors

STEPS, CLIPS, STRIDE, SEED = (199, 999), 3, 2, 5


@pytest.fixture(scope="module")
def pipeline():
    return make_tiny_pipeline()


def measured(pipeline, dataset, **changes):
    given = {"count": CLIPS, "seed": SEED} | changes
    count = given.pop("count")
    return measure_denoising_errors(
        pipeline,
        dataset,
        count,
        num_frames=FRAMES,
        stride=STRIDE,
        timesteps=STEPS,
        on_clip=lambda _: None,
        **given,
    )


@torch.no_grad()
def test_the_error_of_a_network_that_predicts_nothing_is_the_target(every_clip):
    """At the last timestep no signal is left, and the velocity is the negative clip."""
    silent = make_tiny_pipeline()
    for name in ("weight", "bias"):
        torch.nn.init.zeros_(getattr(silent.unet.conv_out, name))
    torch.nn.init.zeros_(silent.unet.conv_out_adaptor.shift)
    found = measured(silent, every_clip)
    prompts = sample_prompts(every_clip, CLIPS, SEED)
    videos = real_videos(every_clip, prompts, FRAMES, STRIDE)
    for place, video in enumerate(videos):
        latents = silent.vae.encode(video).latent_dist.mean * silent.vae.config.scaling_factor
        square = latents.square().mean().item()
        assert found.error[place, 1] == pytest.approx(square, rel=1e-4)
        common = latents.mean(dim=0).square().mean().item()
        assert found.deviation[place, 1] == pytest.approx(square - common, rel=1e-3, abs=1e-6)
        noise = initial_latent_noise(
            (SEED * 1_000_000 + place) * 2, tuple(latents.shape), SHARED_NOISE
        )[0]
        kept = silent.scheduler.alphas_cumprod[STEPS[0]]
        target = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        assert found.error[place, 0] == pytest.approx(target.square().mean().item(), rel=1e-4)
    assert found.clips == [every_clip.clips[prompt.index].id for prompt in prompts]


def test_the_error_depends_only_on_the_seed(pipeline, every_clip):
    first, second = measured(pipeline, every_clip), measured(pipeline, every_clip)
    assert first.error.shape == (CLIPS, len(STEPS))
    assert np.array_equal(first.error, second.error)
    assert (first.deviation < first.error).all()
    assert (first.deviation > 0).all()
    assert not np.array_equal(first.error, measured(pipeline, every_clip, seed=6).error)


def test_too_few_clips_give_an_error(pipeline, every_clip):
    with pytest.raises(UserError, match="asks for 99 clips"):
        measured(pipeline, every_clip, count=99)

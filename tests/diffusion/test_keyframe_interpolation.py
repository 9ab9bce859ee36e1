import pytest
import torch

from magicvideo.diffusion.sampling import (
    interleave_frames,
    make_scheduler,
    pair_keyframes,
    sample_inbetweens,
)
from magicvideo.models.interpolator import lerp_keyframes

SHAPE = (2, 4, 3, 5, 6)  # b f c h w
CONFIG = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


def test_key_frames_are_unchanged_and_in_place():
    keys = torch.randn(SHAPE)
    inserted = torch.randn(2 * 3, 3, *SHAPE[2:])
    video = interleave_frames(keys, inserted)
    assert video.shape[1] == 4 + 3 * 3
    assert torch.equal(video[:, ::4], keys)
    assert torch.equal(video[1, 5:8], inserted[3 + 1])


def test_pairs_are_neighbouring_key_frames():
    keys = torch.randn(SHAPE)
    pairs = pair_keyframes(keys)
    assert torch.equal(pairs[4, 0], keys[1, 1])
    assert torch.equal(pairs[4, 1], keys[1, 2])


def test_interpolation_between_key_frames_is_linear():
    steps = torch.arange(4.0)[None, :, None, None, None].expand(SHAPE)
    video = interleave_frames(steps, lerp_keyframes(pair_keyframes(steps), 4))
    torch.testing.assert_close(video[1, :, 0, 0, 0], torch.arange(16) / 5)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_perfect_denoiser_gives_the_true_frames(steps):
    torch.manual_seed(1)
    pairs, truth = torch.randn(6, 2, 3, 5, 6), torch.randn(6, 3, 3, 5, 6)
    noised = pairs + 0.1
    scheduler = make_scheduler(CONFIG, "ddim")
    estimated, unit = torch.randn_like(truth), torch.rand(6, 1, 1, 1, 1) + 0.1
    residuals = (truth - estimated) / unit
    steps_done = []

    def estimate(keys, noisy_keys, level):
        assert torch.equal(keys, pairs)
        assert torch.equal(noisy_keys, noised)
        assert level.tolist() == [40] * 6
        return estimated, unit

    def oracle(x, timestep, keys, level, _tokens, _fps):
        assert torch.equal(keys, noised)
        assert level.tolist() == [40] * 6
        kept = scheduler.alphas_cumprod[timestep][:, None, None, None, None]
        # v from x and the clean residual, at any step but the last, where x tells no noise
        noise = (x - kept.sqrt() * residuals) / (1 - kept).sqrt()
        return kept.sqrt() * noise - (1 - kept).sqrt() * residuals

    made = sample_inbetweens(
        estimate,
        oracle,
        pairs,
        noised,
        torch.randn_like(truth),
        scheduler,
        steps,
        40,
        torch.randn(6, 2, 7),
        torch.full((6,), 24.0),
        steps_done.append,
    )
    torch.testing.assert_close(made, truth, atol=1e-4, rtol=1e-4)
    assert steps_done == list(range(1, steps + 1))

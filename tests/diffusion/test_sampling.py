import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from magicvideo.diffusion.sampling import make_scheduler, sample_with_cfg
from magicvideo.errors import UserError

VIDEOS = 2
SHAPE = (VIDEOS, 5, 3, 4, 7)
TOKENS, NEGATIVE = torch.randn(VIDEOS, 6, 8), torch.randn(VIDEOS, 6, 8)
FPS = torch.tensor([8.0, 13.0])
CONFIG = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
# diffusers' solver hands tensors to numpy in a way that numpy 2 discourages
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def stored(**changes):
    """A configuration as a model folder holds it."""
    return dict(DDIMScheduler(**{**CONFIG, **changes}).config)


def run(denoise, scheduler, num_steps=8, guidance_scale=1.0, noise=None, **changes):
    given = {"tokens": TOKENS, "negative_tokens": NEGATIVE, "fps": FPS, **changes}
    noise = torch.randn(SHAPE) if noise is None else noise
    return sample_with_cfg(denoise, noise, scheduler, num_steps, guidance_scale, **given)


def oracle(config, clean_of):
    """A perfect denoiser: `clean_of(noisy, alpha, sigma)` gives the expected clean latents."""
    kept = DDIMScheduler.from_config(config).alphas_cumprod

    def denoise(noisy, timestep, *_):
        alpha, sigma = (
            v[timestep][:, None, None, None, None].float() for v in (kept.sqrt(), (1 - kept).sqrt())
        )
        clean = clean_of(noisy, alpha, sigma)
        noise = (noisy - alpha * clean) / sigma
        if config["prediction_type"] == "epsilon":
            return noise
        return alpha * noise - sigma * clean

    return denoise


def toy(latents, timestep, tokens, fps):
    """An arbitrary denoiser that depends on all of its inputs."""
    told = tokens.mean(dim=(1, 2)) + 0.01 * fps + 0.001 * timestep
    return torch.tanh(latents) * told[:, None, None, None, None]


@pytest.mark.parametrize(
    ("sampler", "changes"),
    [
        ("ddim", {}),
        ("ddim", {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}),
        ("dpm++", {}),
    ],
)
def test_a_perfect_denoiser_recovers_the_clean_latents(sampler, changes):
    # in 8 steps: where steps do not divide 1000, diffusers' DDIM ends at step 0, not before it
    config, clean = stored(**changes), torch.randn(SHAPE)
    made = run(oracle(config, lambda *_: clean), make_scheduler(config, sampler))
    torch.testing.assert_close(made, clean, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 250), ("dpm++", 60)])
def test_samplers_solve_the_flow_of_a_gaussian(sampler, steps):
    """For Gaussian latents, the ideal denoiser and its flow are known."""
    config, mean, std, noise = stored(), 0.8, 0.4, torch.randn(SHAPE)

    def expected_clean(noisy, alpha, sigma):
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (noisy - alpha * mean)

    denoise = oracle(config, expected_clean)
    made = run(denoise, make_scheduler(config, sampler), steps, noise=noise)
    torch.testing.assert_close(made, mean + std * noise, atol=0.02, rtol=0)


def test_guidance_of_one_is_the_conditional_model():
    scheduler, noise = make_scheduler(stored(), "ddim"), torch.randn(SHAPE)
    plain = run(toy, scheduler, noise=noise)
    torch.testing.assert_close(plain, run(toy, scheduler, noise=noise, negative_tokens=TOKENS))
    same = run(toy, scheduler, guidance_scale=3.0, noise=noise, negative_tokens=TOKENS)
    torch.testing.assert_close(plain, same, atol=1e-5, rtol=1e-5)

    def count(latents, *given):
        assert len(latents) == VIDEOS  # half of the work, where there is nothing to move away from
        return toy(latents, *given)

    run(count, scheduler)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_guidance_moves_away_from_the_negative_prompt(sampler):
    scheduler, noise = make_scheduler(stored(), sampler), torch.randn(SHAPE)

    def guided(latents, timestep, tokens, fps):
        negative = toy(latents, timestep, NEGATIVE, fps)
        return negative + 3.5 * (toy(latents, timestep, tokens, fps) - negative)

    expected = run(guided, scheduler, noise=noise)
    made = run(toy, scheduler, guidance_scale=3.5, noise=noise)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    assert (made - run(toy, scheduler, noise=noise)).abs().max() > 0.01


@pytest.mark.parametrize(("stop", "guided"), [(0.0, 0), (0.25, 2), (0.3, 3), (0.75, 6), (1.0, 8)])
def test_guidance_ends_at_guidance_stop(stop, guided):
    scheduler, noise, sizes = make_scheduler(stored(), "ddim"), torch.randn(SHAPE), []

    def count(latents, *given):
        sizes.append(len(latents) // VIDEOS)
        return toy(latents, *given)

    for _ in range(2):
        made = run(count, scheduler, guidance_scale=3.5, noise=noise, guidance_stop=stop)
    assert sizes == ([2] * guided + [1] * (8 - guided)) * 2
    whole = run(toy, scheduler, guidance_scale=3.5, noise=noise)
    plain = run(toy, scheduler, noise=noise)
    assert torch.equal(made, whole) == (guided == 8)
    assert torch.equal(made, plain) == (guided == 0)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_a_scheduler_keeps_no_state_between_calls(sampler):
    scheduler, noise = make_scheduler(stored(), sampler), torch.randn(SHAPE)
    first = run(toy, scheduler, noise=noise)
    run(toy, scheduler, num_steps=4)
    assert torch.equal(run(toy, scheduler, noise=noise), first)


def test_sampling_starts_at_the_last_timestep_and_reports_every_step():
    seen, done = [], []

    def denoise(latents, timestep, tokens, fps):
        assert timestep.shape == fps.shape == (2 * VIDEOS,)
        assert torch.equal(fps, torch.cat([FPS, FPS]))
        assert torch.equal(tokens, torch.cat([NEGATIVE, TOKENS]))
        seen.append(timestep[0].item())
        return latents

    scheduler = make_scheduler(stored(), "ddim")
    run(denoise, scheduler, num_steps=4, guidance_scale=2.0, on_step=done.append)
    assert seen == [999, 749, 499, 249]
    assert done == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("sampler", "kind"), [("ddim", DDIMScheduler), ("dpm++", DPMSolverMultistepScheduler)]
)
def test_settings_of_the_model_carry_over(sampler, kind):
    config = stored()
    scheduler = make_scheduler(config, sampler)
    assert type(scheduler) is kind
    for name in set(CONFIG) - {"clip_sample"}:
        assert scheduler.config[name] == CONFIG[name], name
    # no signal at the last step: what the network was trained on is where sampling starts
    assert scheduler.alphas_cumprod[-1] < 1e-6
    assert scheduler.init_noise_sigma == 1


def test_dpm_solver_is_of_second_order():
    config = make_scheduler(stored(), "dpm++").config
    assert (config.algorithm_type, config.solver_order) == ("dpmsolver++", 2)


def test_an_unknown_sampler_is_answered_with_the_known_ones():
    with pytest.raises(
        UserError, match=r"Unknown sampler 'heun'; choose one of ddim, dpm\+\+, unipc"
    ):
        make_scheduler(stored(), "heun")

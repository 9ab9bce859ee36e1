import pytest
import torch
from diffusers import DDIMScheduler

from magicvideo.diffusion.loss import (
    denoising_loss,
    prediction_target,
    sample_timesteps,
    snr,
    temporal_mode_weights,
)
from magicvideo.diffusion.noise import correlated_noise, noise_covariance, seeded_generator
from magicvideo.rng import StackedGenerator

VIDEOS = 5
SHAPE = (VIDEOS, 3, 2, 7, 4)
TIMESTEPS = torch.tensor([0, 40, 333, 700, 999])


def make_scheduler(prediction_type, *, zero_snr=True):
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
    )


def alpha_and_sigma(scheduler):
    kept = scheduler.alphas_cumprod[TIMESTEPS].double()
    return kept.sqrt(), (1 - kept).sqrt()


def spread(values):
    return values.float()[:, None, None, None, None]


def test_the_signal_to_noise_ratio():
    scheduler = make_scheduler("v_prediction")
    alpha, sigma = alpha_and_sigma(scheduler)
    ratio = snr(scheduler, TIMESTEPS)
    torch.testing.assert_close(ratio, ((alpha / sigma) ** 2).float(), rtol=1e-4, atol=0)
    assert ratio[-1] == 0
    assert ratio[0] > 1000


def test_the_target_is_the_noise_or_the_velocity():
    latents, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    epsilon = make_scheduler("epsilon")
    assert torch.equal(prediction_target(epsilon, latents, noise, TIMESTEPS), noise)
    velocity = make_scheduler("v_prediction")
    alpha, sigma = alpha_and_sigma(velocity)
    expected = spread(alpha) * noise - spread(sigma) * latents
    made = prediction_target(velocity, latents, noise, TIMESTEPS)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_gamma_all_timesteps_have_equal_weight(prediction_type):
    prediction, target = torch.randn(SHAPE), torch.randn(SHAPE)
    loss = denoising_loss(make_scheduler(prediction_type), prediction, target, TIMESTEPS, None)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(prediction, target))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_the_weights_are_the_documented_ones(prediction_type, gamma):
    scheduler = make_scheduler(prediction_type)
    prediction, target = torch.randn(SHAPE), torch.randn(SHAPE)
    expected = 0.0
    for i, ratio in enumerate(snr(scheduler, TIMESTEPS).tolist()):
        scale = ratio if prediction_type == "epsilon" else ratio + 1
        weight = min(scale, gamma) / scale if scale > 0 else 1.0
        error = float(((prediction[i] - target[i]) ** 2).mean())
        expected += weight * error / VIDEOS
    loss = denoising_loss(scheduler, prediction, target, TIMESTEPS, gamma)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_weights_for_noise_prediction_are_the_published_ones():
    """min(SNR, gamma) / SNR, wherever that is defined."""
    scheduler = make_scheduler("epsilon", zero_snr=False)
    for step in (1, 250, 500, 999):
        timesteps = torch.tensor([step])
        ratio = snr(scheduler, timesteps).item()
        zeros = torch.zeros(1, *SHAPE[1:])
        loss = denoising_loss(scheduler, zeros + 2, zeros, timesteps, 5.0)
        assert loss.item() == pytest.approx(4 * min(ratio, 5.0) / ratio, rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_last_timesteps_have_weight_one_and_the_first_almost_zero(prediction_type):
    """Departure D8: the published weight for velocities would be 0 at the last step."""
    scheduler = make_scheduler(prediction_type)
    zeros = torch.zeros(1, *SHAPE[1:])
    losses = [
        denoising_loss(scheduler, zeros + 1, zeros, torch.tensor([step]), 5.0).item()
        for step in range(0, 1000, 27)
    ] + [denoising_loss(scheduler, zeros + 1, zeros, torch.tensor([999]), 5.0).item()]
    assert losses == sorted(losses)
    assert losses[-1] == losses[-10] == 1
    assert losses[0] < 0.01


def test_each_video_has_the_weight_of_its_timestep():
    scheduler = make_scheduler("v_prediction")
    prediction = torch.zeros(SHAPE, requires_grad=True)
    target = torch.ones(SHAPE)
    denoising_loss(scheduler, prediction, target, TIMESTEPS, 5.0).backward()
    size = prediction[0].numel() * VIDEOS
    weights = prediction.grad.flatten(1)[:, 0] * size / -2
    expected = (5 / (snr(scheduler, TIMESTEPS) + 1)).clamp(max=1)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("weight", [0.5, 7.0])
def test_the_deviation_from_the_mean_over_frames_has_its_weight(weight):
    scheduler = make_scheduler("v_prediction")
    prediction, target = torch.randn(SHAPE), torch.randn(SHAPE)
    error = prediction - target
    common = error.mean(dim=1, keepdim=True)
    expected = common.square().mean() + weight * (error - common).square().mean()
    loss = denoising_loss(scheduler, prediction, target, TIMESTEPS, None, weight)
    torch.testing.assert_close(loss, expected)


def test_a_fraction_of_the_timesteps_is_the_last_one():
    drawn = sample_timesteps(4000, 50, 0.4, StackedGenerator([torch.Generator().manual_seed(6)]))
    assert drawn.min() == 0
    assert drawn.max() == 49
    share = (drawn == 49).float().mean().item()
    assert share == pytest.approx(0.4 + 0.6 / 50, abs=0.03)
    rest = drawn[drawn != 49].float()
    assert rest.mean().item() == pytest.approx(24, abs=1)


def test_by_default_timesteps_are_uniform_and_use_no_other_random_number():
    first, second = (StackedGenerator([torch.Generator().manual_seed(8)]) for _ in range(2))
    assert torch.equal(sample_timesteps(37, 1000, 0.0, first), second.integers(1000, 37))
    assert torch.equal(first.uniform(3), second.uniform(3))


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_timesteps_have_the_density_of_a_power(power):
    # P(t < x T) = P(u < x^(1/power)) = x^(1/power)
    stream = StackedGenerator([torch.Generator().manual_seed(9)])
    drawn = sample_timesteps(20000, 1000, 0.0, stream, power)
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    for x in (0.2, 0.5, 0.9):
        share = (drawn < 1000 * x).float().mean().item()
        assert share == pytest.approx(x ** (1 / power), abs=0.015)


def test_modes_are_weighted_by_the_inverse_noise_variance_up_to_the_limit():
    covariance = noise_covariance(6, 0.8, 0.5)
    variances, modes = torch.linalg.eigh(covariance)
    weights = temporal_mode_weights(covariance, limit=1e9).double()
    # without a limit it is the inverse, so each mode of an error like the noise counts alike
    torch.testing.assert_close(weights @ covariance, torch.eye(6).double(), atol=1e-4, rtol=0)
    limited = modes.T @ temporal_mode_weights(covariance, limit=3.0).double() @ modes
    diagonal = limited.diagonal()
    assert (limited - torch.diag(diagonal)).abs().max() < 1e-5
    high = 1 / variances > 3
    assert high.any()
    assert not high.all()
    torch.testing.assert_close(
        diagonal / diagonal[-1], (1 / variances).clamp(max=3) * variances[-1], atol=1e-4, rtol=1e-4
    )
    assert (diagonal * variances).mean() == pytest.approx(1, abs=1e-5)


def test_mode_weights_do_not_change_the_loss_of_an_error_with_the_noise_covariance():
    covariance = noise_covariance(5, 0.7, 0.6)
    generator = StackedGenerator([seeded_generator("error")])
    error = correlated_noise((32, 5, 4, 9, 11), generator, 0.7, 0.6)
    scheduler = make_scheduler("v_prediction")
    arguments = (scheduler, error, torch.zeros_like(error), torch.full((32,), 500), None)
    plain = denoising_loss(*arguments)
    weighted = denoising_loss(*arguments, mode_weights=temporal_mode_weights(covariance, limit=1e9))
    torch.testing.assert_close(plain, weighted, atol=0.03, rtol=0)
    # an error that all frames share is the strongest mode of the noise, which weighs least
    shared = error[:, :1].expand_as(error)
    arguments = (scheduler, shared, torch.zeros_like(error), torch.full((32,), 500), None)
    weights = temporal_mode_weights(covariance, limit=1e9)
    assert denoising_loss(*arguments, mode_weights=weights) < 0.4 * denoising_loss(*arguments)

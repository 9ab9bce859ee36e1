"""Training loss of the denoiser: noise or velocity error, weighted by signal-to-noise ratio."""

from typing import Literal, TypeAlias

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents

PredictionType: TypeAlias = Literal["epsilon", "v_prediction"]


def snr(scheduler: DDIMScheduler, timesteps: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Return the signal-to-noise ratio of each diffusion step, alpha^2 / sigma^2."""
    # x_t = alpha x + sigma e; diffusers stores alpha^2, and sigma^2 = 1 - alpha^2
    kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return kept / (1 - kept)


def prediction_target(
    scheduler: DDIMScheduler, latents: Latents, noise: Latents, timesteps: Int[Tensor, "b"]
) -> Latents:
    """Return the prediction target: e, or v = alpha e - sigma x (2202.00512, section 4)."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    # v has about unit variance at every step. At pure noise (alpha = 0) it is -x, so the network
    # learns to predict the data there; predicting e would be trivial.
    return scheduler.get_velocity(latents, noise, timesteps)


def sample_timesteps(
    count: int,
    num_train_timesteps: int,
    terminal_step_prob: float,
    generator: StackedGenerator,
    power: float = 1.0,
) -> Int[Tensor, "b"]:
    """Sample training timesteps.

    At the last step of a schedule with zero terminal SNR the input is pure noise, and the network
    learns the conditional mean of the data, which one-step sampling returns.

    Args:
        count: Number of steps to draw.
        num_train_timesteps: Steps of the schedule, T; the result is in [0, T).
        terminal_step_prob: Share of samples at the last step, T - 1.
        generator: Source of the random numbers.
        power: The other samples are `floor(T u^power)` with u uniform on [0, 1). With 1 all steps
            are equally frequent. Below 1, steps of high noise, which determine the content of a
            video, are drawn more often: the density at t is proportional to t^(1/power - 1).
    """
    if power == 1.0:
        drawn = generator.integers(num_train_timesteps, count)
    else:
        drawn = (num_train_timesteps * generator.uniform(count) ** power).long()
        drawn = drawn.clamp(max=num_train_timesteps - 1)  # u^power may round to 1
    if not terminal_step_prob:
        return drawn
    at_last = generator.uniform(count) < terminal_step_prob
    return drawn.masked_fill(at_last, num_train_timesteps - 1)


def temporal_mode_weights(covariance: Float[Tensor, "f f"], limit: float) -> Float[Tensor, "f f"]:
    """Return the matrix W that weights each temporal mode of the error by its inverse noise.

    Let C = U diag(l) U^T be the covariance of the noise over frames. Mode i of the velocity has a
    variance of about l_i, so the plain squared error gives little weight to the modes of motion,
    whose l_i are small. W = s U diag(min(1 / l_i, limit)) U^T gives them equal weight. The factor s
    keeps the scale of the loss: an error with covariance C has weight 1 per frame.

    Args:
        covariance: Covariance of the noise, from `diffusion.noise.noise_covariance`.
        limit: Maximal weight of a mode. The weakest modes are mostly noise of the autoencoder.
    """
    # C is symmetric, so its modes are orthogonal; they range from the mean over frames to
    # frame-to-frame flicker
    variances, modes = torch.linalg.eigh(covariance)
    weights = (1 / variances.clamp_min(1e-6)).clamp(max=limit)
    # normalize to trace(W C) = f: an error with covariance C has weight 1 per frame
    weights = weights * len(weights) / (weights * variances).sum()
    return (modes * weights @ modes.T).float()


def denoising_loss(
    scheduler: DDIMScheduler,
    prediction: Latents,
    target: Latents,
    timesteps: Int[Tensor, "b"],
    snr_gamma: float | None,
    temporal_weight: float = 1.0,
    mode_weights: Float[Tensor, "f f"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean squared error, with lower weight at steps with little noise.

    The weight of a step is `min(s, gamma) / s`, with s = SNR for noise prediction and s = SNR + 1
    for v-prediction. It is 1 at high noise and decreases with the noise. For noise prediction this
    is the weight of Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy"
    (2303.09556), continued to 1 at a ratio of 0.

    Departure D8 (docs/paper_map.md): the published weight for v-prediction, `min(SNR, gamma) / (SNR
    + 1)`, is 0 at the last step of a schedule with zero terminal SNR and close to 0 before it, so
    the steps that determine the content of a video would not be learned. Here their weight is 1.

    Args:
        scheduler: Noise schedule and prediction type.
        prediction: Output of the network.
        target: Output of `prediction_target`.
        timesteps: Diffusion step of each video.
        snr_gamma: Value of `s` from which the weight decreases; None for equal weights.
        temporal_weight: Weight of the error's deviation from its mean over the frames of a video.
            This part is visible as flicker, and is small if frames share most of their noise.
        mode_weights: W from `temporal_mode_weights`: the squared error e^T e over the frames of a
            video becomes e^T W e. None for equal weights of all modes.
    """
    error = prediction.float() - target.float()
    weighted = (
        error if mode_weights is None else torch.einsum("fg,bgchw->bfchw", mode_weights, error)
    )
    errors = (error * weighted).flatten(1).mean(dim=1)
    if temporal_weight != 1.0:
        # E[e^2] = E[e]^2 + Var[e] over frames; the weight w multiplies the variance: w E[e^2] + (1
        # - w) E[e]^2
        common = error.mean(dim=1).square().flatten(1).mean(dim=1)
        errors = temporal_weight * errors + (1 - temporal_weight) * common
    if snr_gamma is None:
        return errors.mean()
    ratio = snr(scheduler, timesteps)
    # the squared errors of e and v are SNR and SNR + 1 times the squared error of x, because x =
    # (x_t - sigma e) / alpha = alpha x_t - sigma v
    scale = ratio if scheduler.config.prediction_type == "epsilon" else ratio + 1
    return (errors * (snr_gamma / scale).clamp(max=1)).mean()

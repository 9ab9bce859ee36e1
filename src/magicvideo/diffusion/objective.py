"""What the denoiser learns: noise or velocity, weighted by the signal-to-noise ratio."""

from typing import Literal, TypeAlias

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from magicvideo.shapes import Latents

PredictionType: TypeAlias = Literal["epsilon", "v_prediction"]


def snr(scheduler: DDIMScheduler, timesteps: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Return the signal-to-noise ratio of each diffusion step, alpha^2 / sigma^2."""
    kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return kept / (1 - kept)


def target_of(
    scheduler: DDIMScheduler, latents: Latents, noise: Latents, timesteps: Int[Tensor, "b"]
) -> Latents:
    """Return what the network should predict: the noise, or v = alpha * noise - sigma * latents."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    return scheduler.get_velocity(latents, noise, timesteps)


def denoising_loss(
    scheduler: DDIMScheduler,
    prediction: Latents,
    target: Latents,
    timesteps: Int[Tensor, "b"],
    snr_gamma: float | None,
) -> Float[Tensor, ""]:
    """Return the mean squared error, weighted by min(SNR, gamma) in units of the clean latents.

    Source of the weighting: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting
    Strategy" (2303.09556), equations for eps- and v-prediction. `snr_gamma=None` leaves it out.
    """
    errors = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    if snr_gamma is None:
        return errors.mean()
    ratio = snr(scheduler, timesteps)
    weights = ratio.clamp(max=snr_gamma)
    divisor = ratio if scheduler.config.prediction_type == "epsilon" else ratio + 1
    return (errors * weights / divisor.clamp(min=torch.finfo(ratio.dtype).tiny)).mean()

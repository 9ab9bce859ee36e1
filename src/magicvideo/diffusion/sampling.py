"""From noise to latents: the loop over diffusion steps, with classifier-free guidance."""

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from magicvideo.errors import UserError
from magicvideo.shapes import Latents, Tokens

Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
SamplerName: TypeAlias = Literal["ddim", "dpm++"]
Scheduler: TypeAlias = DDIMScheduler | DPMSolverMultistepScheduler


def make_scheduler(config: dict[str, Any], sampler: str) -> Scheduler:
    """Return diffusers' scheduler for a model's stored scheduler configuration.

    Args:
        config: Configuration of the scheduler that the model was trained with.
        sampler: `ddim` (the paper's kind, deterministic) or `dpm++` (DPM-Solver++, second order).

    Raises:
        UserError: If the sampler has another name.
    """
    if sampler == "ddim":
        return DDIMScheduler.from_config(config)
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    allowed = " and ".join(get_args(SamplerName))
    raise UserError(f"The sampler {sampler!r} is not known; choose one of {allowed}.")


@torch.no_grad()
def sample_with_cfg(
    denoise: Denoiser,
    noise: Latents,
    scheduler: Scheduler,
    num_steps: int,
    guidance_scale: float,
    tokens: Tokens,
    negative_tokens: Tokens,
    fps: Float[Tensor, "b"],
    on_step: Callable[[int], None] | None = None,
    guidance_stop: float = 1.0,
) -> Latents:
    """Return the latents that the denoiser makes of noise.

    Args:
        denoise: Maps (noisy latents, timestep `b`, tokens, fps) to its prediction.
        noise: Standard normal.
        scheduler: Tells the steps and goes from one to the next.
        num_steps: Evaluations of the denoiser (each of two videos, while guidance is on).
        guidance_scale: 1 is the plain conditional model; above it, predictions are pushed away
            from what `negative_tokens` gives (Ho and Salimans, 2207.12598).
        tokens: Condition of each video.
        negative_tokens: What to move away from, usually the empty prompt; the shape of `tokens`.
        fps: Frame rate of each video.
        on_step: Called with the number of finished steps.
        guidance_stop: Share of the steps after which guidance ends. The last ones settle what is
            nearly clean; there the plain model does as well and costs half (Kynkäänniemi et al.,
            2404.07724).
    """
    guided_steps = 0 if guidance_scale == 1.0 else math.ceil(guidance_stop * num_steps)
    condition, rates = torch.cat([negative_tokens, tokens]), torch.cat([fps, fps])
    steps = itertools.count()

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        if next(steps) >= guided_steps:
            return denoise(latents, timestep, tokens, fps)
        doubled = denoise(latents.repeat(2, 1, 1, 1, 1), timestep.repeat(2), condition, rates)
        # the difference of two predictions is taken in the precision of the latents
        negative, positive = doubled.to(latents.dtype).chunk(2)
        return negative + guidance_scale * (positive - negative)

    return denoising_loop(predict, noise, scheduler, num_steps, on_step)


@torch.no_grad()
def denoising_loop(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Latents,
    scheduler: Scheduler,
    num_steps: int,
    on_step: Callable[[int], None] | None = None,
) -> Latents:
    """Return what is at the end of the scheduler's way from noise, step by step.

    All but the predictions keep the precision of the noise, so that small steps are not lost.

    Args:
        predict: Maps (noisy latents, timestep `b`) to the noise or the velocity in them, in any
            precision.
        noise: Standard normal.
        scheduler: Tells the steps and goes from one to the next.
        num_steps: Calls of `predict`.
        on_step: Called with the number of finished steps.
    """
    scheduler.set_timesteps(num_steps, device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = predict(scaled, timestep.expand(len(scaled))).to(latents.dtype)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(done)
    return latents


Keys: TypeAlias = Float[Tensor, "g 2 c h w"]
Inserted: TypeAlias = Float[Tensor, "g k c h w"]
# (noisy residuals, timestep `g`, keys, noise level `g`, tokens, fps `g`) to its prediction
GapDenoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
# (keys, noisy keys, noise level `g`) to new frames and the unit of what is left, `g 1 1 1 1`
GapEstimator: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def pair_keyframes(keys: Latents) -> Keys:
    """Return the two ends of every gap, the gaps of a video one after the other."""
    pairs = torch.stack([keys[:, :-1], keys[:, 1:]], dim=2)
    return rearrange(pairs, "b gaps two c h w -> (b gaps) two c h w")


def interleave_frames(keys: Latents, inserted: Inserted) -> Float[Tensor, "b all c h w"]:
    """Return the whole video: every key, unchanged, and after it the new frames of its gap."""
    between = rearrange(inserted, "(b gaps) k c h w -> b gaps k c h w", b=keys.shape[0])
    woven = torch.cat([keys[:, :-1, None], between], dim=2)
    return torch.cat([rearrange(woven, "b gaps k c h w -> b (gaps k) c h w"), keys[:, -1:]], dim=1)


@torch.no_grad()
def sample_inbetweens(
    estimate: GapEstimator,
    denoise: GapDenoiser,
    pairs: Keys,
    noisy_keys: Keys,
    noise: Inserted,
    scheduler: Scheduler,
    num_steps: int,
    noise_level: int,
    tokens: Tokens,
    fps: Float[Tensor, "g"],
    on_step: Callable[[int], None] | None = None,
) -> Inserted:
    """Return the new frames of gaps: an estimate, and what the denoiser adds to it.

    Args:
        estimate: Tells the new frames in one pass, as `models.interpolation.Interpolator` does.
        denoise: Predicts from noisy residuals, likewise.
        pairs: Both keys of each gap.
        noisy_keys: The same, noised up to `noise_level`, as the networks see them.
        noise: Standard normal, in the shape of the result.
        scheduler: Tells the diffusion steps.
        num_steps: Evaluations of the denoiser.
        noise_level: Diffusion step up to which the keys were noised.
        tokens: Condition of each gap.
        fps: Frames a second of the finished video.
        on_step: Called with the number of finished steps.
    """
    level = torch.full((len(pairs),), noise_level, device=pairs.device)

    def denoise_gaps(x: Tensor, timestep: Tensor, condition: Tensor, rates: Tensor) -> Tensor:
        return denoise(x, timestep, noisy_keys, level, condition, rates)

    # the keys say nearly all; moving away from an empty prompt would add nothing but cost
    residuals = sample_with_cfg(
        denoise_gaps, noise, scheduler, num_steps, 1.0, tokens, tokens, fps, on_step
    )
    estimated, unit = estimate(pairs, noisy_keys, level)
    return estimated + unit * residuals

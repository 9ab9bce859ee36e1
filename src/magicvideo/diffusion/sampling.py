"""Sampling: the denoising loop with classifier-free guidance."""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import diffusers
import torch
from diffusers import SchedulerMixin
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from magicvideo.diffusion.flow_map import FlowMapScheduler
from magicvideo.errors import UserError
from magicvideo.shapes import Latents, Tokens

Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
SamplerName: TypeAlias = Literal["ddim", "dpm++", "unipc", "euler", "lcm", "flow_map"]
FLOW_MAP = "flow_map"
"""The scheduler of distilled networks, defined in this package; the others are diffusers'."""
Scheduler: TypeAlias = SchedulerMixin
# by name, because importing some of them imports scipy, which is slow
SCHEDULERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}
_ALGORITHM = {"dpm++": {"algorithm_type": "dpmsolver++"}}


def make_scheduler(
    config: Mapping[str, Any], sampler: str, options: Mapping[str, Any] | None = None
) -> Scheduler:
    """Build a scheduler from a model's stored scheduler configuration.

    Args:
        config: Configuration of the model's training scheduler.
        sampler: `ddim` (deterministic, as in the paper), `dpm++` (DPM-Solver++, second order),
            `unipc`, `euler`, `lcm` (stochastic, for few steps), or `flow_map` (for distilled
            networks, which need it).
        options: Configuration values that replace those of `config`.

    Raises:
        UserError: If the sampler is unknown.
    """
    if sampler == FLOW_MAP:
        return FlowMapScheduler.of_process(config)
    if sampler not in SCHEDULERS:
        known = ", ".join((*SCHEDULERS, FLOW_MAP))
        raise UserError(f"Unknown sampler {sampler!r}; choose one of {known}.")
    values = {**_ALGORITHM.get(sampler, {}), **(options or {})}
    kind = getattr(diffusers, SCHEDULERS[sampler])
    scheduler: Scheduler = kind.from_config(dict(config), **values)
    return scheduler


def describe_scheduler(scheduler: object, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and options with which `make_scheduler` recreates a scheduler.

    Args:
        scheduler: A scheduler of diffusers.
        config: Configuration of the model's training scheduler.

    Raises:
        UserError: If its class is not in `SCHEDULERS`.
    """
    names = [name for name, kind in SCHEDULERS.items() if type(scheduler).__name__ == kind]
    if not names:
        allowed = ", ".join(SCHEDULERS.values())
        raise UserError(
            f"The scheduler {type(scheduler).__name__} is not supported; assign one of {allowed}."
        )
    own: Mapping[str, Any] = scheduler.config  # type: ignore[attr-defined]
    usual = make_scheduler(config, names[0]).config
    settings = inspect.signature(type(scheduler).__init__).parameters
    options = {
        name: own[name]
        for name in settings
        if name in own and name in usual and own[name] != usual[name]
    }
    return names[0], options


@dataclass
class GuidedDenoiser:
    """A denoiser with classifier-free guidance; callbacks may change its fields between steps.

    Source: Ho and Salimans, 2207.12598, equation 6, with a negative instead of an empty condition:
    e = e_neg + s (e_pos - e_neg).

    Attributes:
        denoise: Maps (noisy latents, timestep `b`, tokens, fps) to its prediction.
        tokens: Condition of each video.
        negative_tokens: Negative condition, usually the empty prompt, in the shape of `tokens`.
        fps: Frame rate of each video.
        guidance_scale: s; 1 disables guidance.
        guidance_stop: Fraction of the steps that use guidance. At the last steps, with little
            noise, guidance has little effect and doubles the cost (Kynkäänniemi et al.,
            2404.07724).
        num_steps: Diffusion steps.
    """

    denoise: Denoiser
    tokens: Tokens
    negative_tokens: Tokens
    fps: Float[Tensor, "b"]
    guidance_scale: float
    guidance_stop: float
    num_steps: int

    def __post_init__(self) -> None:
        """Start the step counter and enable guidance unless the scale is 1."""
        self._is_guided = self.guidance_scale != 1.0
        self._guided_steps = math.ceil(self.guidance_stop * self.num_steps)
        self._steps = itertools.count()

    def set_guidance_scale(self, scale: float) -> None:
        """Change the scale of the following steps; 1 or less disables guidance, as in diffusers."""
        if scale != self.guidance_scale:
            self.guidance_scale, self._is_guided = scale, scale > 1

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Return the prediction for noisy latents, with guidance."""
        is_guided = next(self._steps) < self._guided_steps and self._is_guided
        if not is_guided:
            return self.denoise(latents, timestep, self.tokens, self.fps)
        # both conditions in one batch: one forward pass over twice as many videos
        condition = torch.cat([self.negative_tokens, self.tokens])
        rates = torch.cat([self.fps, self.fps])
        doubled = self.denoise(latents.repeat(2, 1, 1, 1, 1), timestep.repeat(2), condition, rates)
        # the difference needs the precision of the latents
        negative, positive = doubled.to(latents.dtype).chunk(2)
        return negative + self.guidance_scale * (positive - negative)


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
    """Sample latents from noise with classifier-free guidance.

    Args:
        denoise: The denoiser, as for `GuidedDenoiser`.
        noise: Standard normal noise.
        scheduler: The sampler.
        num_steps: Number of diffusion steps.
        guidance_scale: Guidance scale; 1 disables guidance.
        tokens: Condition of each video.
        negative_tokens: Negative condition, usually the empty prompt.
        fps: Frame rate of each video.
        on_step: Called with the number of finished steps.
        guidance_stop: Fraction of the steps that use guidance.
    """
    guided = GuidedDenoiser(
        denoise, tokens, negative_tokens, fps, guidance_scale, guidance_stop, num_steps
    )
    return denoising_loop(guided, noise, scheduler, num_steps, on_step)


@torch.no_grad()
def denoising_loop(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Latents,
    scheduler: Scheduler,
    num_steps: int,
    on_step: Callable[[int], None] | None = None,
    after_step: Callable[[int, Tensor, Latents, Latents], Latents | None] | None = None,
    generator: torch.Generator | None = None,
) -> Latents:
    """Run the denoising loop of a scheduler and return the final latents.

    Everything except the predictions has the precision of the noise, so that small steps are not
    rounded away.

    Args:
        predict: Maps (noisy latents, timestep `b`) to the predicted noise or velocity, in any
            precision.
        noise: Standard normal noise.
        scheduler: The sampler.
        num_steps: Number of diffusion steps.
        on_step: Called with the number of finished steps.
        after_step: Called with the index of the step (from 0), its timestep, the latents and the
            estimate of the clean latents. Returns the latents to continue with, or None to stop.
        generator: Source of the noise that a stochastic scheduler adds.
    """
    scheduler.set_timesteps(num_steps, device=noise.device)
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    noise_source = {"generator": generator} if takes_noise else {}
    # Euler's samples have the standard deviation sigma instead of 1, and are scaled back to unit
    # variance for the network
    latents = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = predict(scaled, timestep.expand(len(scaled))).to(latents.dtype)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **noise_source)[
            0
        ]
        if on_step is not None:
            on_step(step + 1)
        if after_step is not None:
            estimate = estimate_clean(scheduler, scaled, prediction, timestep)
            following = after_step(step, timestep, latents, estimate)
            if following is None:
                break
            latents = following
    return latents


def estimate_clean(
    scheduler: Scheduler, noisy: Latents, prediction: Latents, timestep: Tensor
) -> Latents:
    """Return the estimate of the clean latents that a prediction implies.

    With x = alpha x_0 + sigma e, it is (x - sigma e) / alpha for a predicted noise e, and alpha x -
    sigma v for a predicted velocity v (Salimans and Ho, 2202.00512, appendix D).

    Args:
        scheduler: One of `SCHEDULERS`.
        noisy: The network's input, after `scale_model_input`, with unit variance.
        prediction: Output of the network.
        timestep: Timestep of the noisy latents; it may be fractional.
    """
    kept = scheduler.alphas_cumprod.to(noisy)[timestep.long()]
    alpha, sigma = kept**0.5, (1 - kept) ** 0.5
    if scheduler.config.prediction_type == "v_prediction":
        return alpha * noisy - sigma * prediction
    # alpha is 0 at the first step with zero terminal SNR: avoid the division by zero
    return (noisy - sigma * prediction) / alpha.clamp_min(1e-2)


Keys: TypeAlias = Float[Tensor, "g 2 c h w"]
Inserted: TypeAlias = Float[Tensor, "g k c h w"]
# (noisy residuals, timestep `g`, keys, noise level `g`, tokens, fps `g`) to its prediction
GapDenoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
# (keys, noisy keys, noise level `g`) to new frames and the scale of the residuals, `g 1 1 1 1`
GapEstimator: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def pair_keyframes(keys: Latents) -> Keys:
    """Return the pairs of consecutive key frames, one per gap."""
    pairs = torch.stack([keys[:, :-1], keys[:, 1:]], dim=2)
    return rearrange(pairs, "b gaps two c h w -> (b gaps) two c h w")


def interleave_frames(keys: Latents, inserted: Inserted) -> Float[Tensor, "b all c h w"]:
    """Return the whole video: each key frame unchanged, followed by the new frames of its gap."""
    between = rearrange(inserted, "(b gaps) k c h w -> b gaps k c h w", b=keys.shape[0])
    interleaved = torch.cat([keys[:, :-1, None], between], dim=2)
    return torch.cat(
        [rearrange(interleaved, "b gaps k c h w -> b (gaps k) c h w"), keys[:, -1:]], dim=1
    )


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
    """Sample the new frames of gaps: an estimate plus diffused residuals.

    x = estimate + scale * r, with r sampled from the denoiser.

    Args:
        estimate: Estimates the new frames in one pass (`Interpolator.estimate`).
        denoise: Predicts from noisy residuals (`Interpolator.denoise`).
        pairs: Both keys of each gap.
        noisy_keys: The keys noised up to `noise_level`, the networks' input.
        noise: Standard normal noise, in the shape of the result.
        scheduler: The sampler.
        num_steps: Number of diffusion steps.
        noise_level: Diffusion step up to which the keys were noised.
        tokens: Condition of each gap.
        fps: Frames per second of the finished video.
        on_step: Called with the number of finished steps.
    """
    level = torch.full((len(pairs),), noise_level, device=pairs.device)

    def denoise_gaps(x: Tensor, timestep: Tensor, condition: Tensor, rates: Tensor) -> Tensor:
        return denoise(x, timestep, noisy_keys, level, condition, rates)

    # the keys determine the new frames almost completely, so guidance (1.0 = off) has no benefit
    residuals = sample_with_cfg(
        denoise_gaps, noise, scheduler, num_steps, 1.0, tokens, tokens, fps, on_step
    )
    # x = (l + s c) + s r
    estimated, scale = estimate(pairs, noisy_keys, level)
    return estimated + scale * residuals

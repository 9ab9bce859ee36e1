"""Flow maps: networks that lead from one noise level to another in a single evaluation.

The deterministic sampler of a diffusion model follows an ordinary differential equation. A flow map
is its solution: it leads from a point at time t to the point at time r of the same trajectory. It
is distilled from the model that gives the equation's direction, by central differences, which need
neither Jacobian products nor a discriminator (docs/paper_map.md has the equations).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from diffusers import ConfigMixin, DDIMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Shaped
from torch import Tensor

from magicvideo.shapes import Latents

# (points, time `b`) to the direction of the trajectories there
Direction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
# (points, time `b`, target time `b`) to the mean direction between both times
MeanDirection: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

_LEAST_ALPHA = 1e-3  # noise prediction says nothing of the data where they are absent


class LinearPath:
    """A diffusion process as straight lines between data and noise.

    A noisy latent z = alpha x + sigma e, divided by alpha + sigma, is y = (1 - t) x + t e with the
    time t = sigma / (alpha + sigma), from 0 for data to 1 for noise. Along the line the velocity is
    e - x. Diffusion steps, which networks are conditioned on, are real numbers here, from -1 for
    data to the last one.

    Args:
        scheduler: The diffusion process, with what its network predicts.
    """

    def __init__(self, scheduler: "DDIMScheduler | FlowMapScheduler") -> None:
        kept = scheduler.alphas_cumprod.double()
        angle = torch.atan2((1 - kept).sqrt(), kept.sqrt())
        self._angles = torch.cat([angle.new_zeros(1), angle])
        self.predicts_noise = scheduler.config.prediction_type == "epsilon"

    @property
    def last(self) -> Float[Tensor, ""]:
        """Return the time of the last diffusion step: 1 with zero terminal SNR."""
        angle = self._angles[-1]
        return (angle.sin() / (angle.sin() + angle.cos())).float()

    def time_at(self, step: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the time of diffusion steps."""
        position = (step.double() + 1).clamp(0, len(self._angles) - 1)
        angles = self._angles.to(step.device)
        below = position.floor().long().clamp(max=len(angles) - 2)
        angle = torch.lerp(angles[below], angles[below + 1], position - below)
        return (angle.sin() / (angle.sin() + angle.cos())).float()

    def step_at(self, time: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the diffusion step of times."""
        angles = self._angles.to(time.device)
        angle = torch.atan2(time.double(), 1 - time.double()).clamp(max=angles[-1])
        above = torch.searchsorted(angles, angle).clamp(1, len(angles) - 1)
        low, high = angles[above - 1], angles[above]
        return (above - 2 + (angle - low) / (high - low)).float()

    def scale(self, time: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return alpha + sigma, by which a point of the line is multiplied for the network."""
        return (time.square() + (1 - time).square()).rsqrt()

    def velocity(self, prediction: Latents, points: Latents, time: Float[Tensor, "b"]) -> Latents:
        """Return the velocity e - x that a network's prediction means.

        For v = alpha e - sigma x it is (sigma - alpha) z + (alpha + sigma) v, with z the network's
        input; a predicted noise e is first v = (e - sigma z) / alpha.

        Args:
            prediction: Noise or v, as the network predicts.
            points: On the lines, not scaled for the network.
            time: Of each video.
        """
        alpha, sigma, scale = self._coefficients(time, points)
        noisy = points * scale
        v = (prediction - sigma * noisy) / alpha.clamp_min(_LEAST_ALPHA)
        return (sigma - alpha) * noisy + scale * (v if self.predicts_noise else prediction)

    def prediction(self, velocity: Latents, points: Latents, time: Float[Tensor, "b"]) -> Latents:
        """Return the network's prediction that means a velocity, the inverse of `velocity`."""
        alpha, sigma, scale = self._coefficients(time, points)
        noisy = points * scale
        v = (velocity - (sigma - alpha) * noisy) / scale
        return alpha.clamp_min(_LEAST_ALPHA) * v + sigma * noisy if self.predicts_noise else v

    def _coefficients(
        self, time: Float[Tensor, "b"], points: Latents
    ) -> tuple[Tensor, Tensor, Tensor]:
        time = time[:, None, None, None, None].to(points)
        scale = self.scale(time)
        return (1 - time) * scale, time * scale, scale


@torch.no_grad()
def flow_map_target(
    mean_direction: MeanDirection,
    points: Float[Tensor, "b ..."],
    direction: Float[Tensor, "b ..."],
    time: Float[Tensor, "b"],
    target_time: Float[Tensor, "b"],
    difference: float,
    last: Float[Tensor, ""] | float = 1.0,
) -> Float[Tensor, "b ..."]:
    """Return what the mean direction between two times must be, by what it is close by.

    With u(y, t, r) the mean direction, the flow map is y - (t - r) u. That it does not change when
    y moves along its own trajectory gives u = v - (t - r) du/dt (Geng et al., 2505.13447), with v
    the direction at t. The total derivative is the difference of u at two close points of that
    trajectory, taken on both sides where the time has room for it.

    Args:
        mean_direction: u, the network that learns.
        points: y, of which the first axis is that of the videos.
        direction: v at these points.
        time: t of each video.
        target_time: r of each video, at most t. Where both are equal the result is v.
        difference: Distance in time of the close points.
        last: The last time.
    """
    later = torch.minimum(time + difference, torch.as_tensor(last).to(time))
    earlier = (time - difference).clamp(min=0)

    def at(moment: Tensor) -> Tensor:
        moved = points + _expand(moment - time, points) * direction
        return mean_direction(moved, moment, target_time)

    derivative = (at(later) - at(earlier)) / _expand(later - earlier, points)
    return direction - _expand(time - target_time, points) * derivative


def _expand(values: Float[Tensor, "b"], like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


class FlowMapScheduler(SchedulerMixin, ConfigMixin):
    """Steps of a flow map: z at one diffusion step to z at the next, exact for a perfect network.

    It has the interface of diffusers' schedulers. The network is conditioned on the target of each
    step, too (`target_of`).

    Args:
        num_train_timesteps: Diffusion steps of the process.
        beta_start: As in `DDIMScheduler`, and so are the following.
        beta_end: As there.
        beta_schedule: As there.
        prediction_type: As there.
        rescale_betas_zero_snr: As there.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        prediction_type: str = "v_prediction",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        process = DDIMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.alphas_cumprod: Tensor = process.alphas_cumprod
        self.path = LinearPath(self)
        self.timesteps = torch.arange(num_train_timesteps).flip(0)

    @classmethod
    def of_process(cls, config: Mapping[str, Any]) -> "FlowMapScheduler":
        """Return the scheduler for the diffusion process of another scheduler's configuration."""
        names = inspect.signature(cls.__init__).parameters
        return cls(**{name: value for name, value in config.items() if name in names})

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str = "cpu") -> None:
        """Space steps evenly from the last diffusion step down to clean latents."""
        total = self.config.num_train_timesteps
        spaced = torch.arange(num_inference_steps, 0, -1) * total / num_inference_steps
        self.timesteps = (spaced.round().long() - 1).to(device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int | None = None) -> Tensor:  # noqa: ARG002
        """Return the sample as it is."""
        return sample

    def target_of(self, timestep: Tensor | int) -> int:
        """Return the diffusion step that a step of these leads to, -1 for clean latents."""
        steps = self.timesteps.tolist()
        place = steps.index(int(timestep)) + 1
        return int(steps[place]) if place < len(steps) else -1

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        return_dict: bool = False,  # noqa: ARG002 - diffusers' schedulers have it
    ) -> tuple[Tensor]:
        """Return the sample at the target of a step, as a tuple of one.

        Args:
            model_output: The network's prediction, conditioned on the step and its target.
            timestep: One of `timesteps`.
            sample: At that step, `b f c h w`.
            return_dict: Not used.
        """
        time, target = (
            self.path.time_at(torch.tensor(float(step), device=sample.device)).expand(len(sample))
            for step in (int(timestep), self.target_of(timestep))
        )
        points = sample / _expand(self.path.scale(time), sample)
        velocity = self.path.velocity(model_output, points, time)
        moved = points - _expand(time - target, sample) * velocity
        return (moved * _expand(self.path.scale(target), sample),)

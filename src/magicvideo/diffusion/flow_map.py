"""Flow maps: networks that map one noise level to another in a single evaluation.

The deterministic sampler of a diffusion model solves an ordinary differential equation. A flow map
is its solution: it maps the point at time t of a trajectory to the point at time r. It is distilled
from the model whose predictions define the equation. The training target uses central differences,
which need neither Jacobian-vector products nor a discriminator (docs/paper_map.md has the
equations).
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

# (points, time `b`) to the velocity dy/dt of the trajectories through the points
Direction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
# (points, time `b`, target time `b`) to the mean velocity between both times
MeanDirection: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

_LEAST_ALPHA = 1e-3  # at alpha = 0 a predicted noise carries no information about the data


class LinearPath:
    """A diffusion process as straight lines between data and noise.

    A noisy latent z = alpha x + sigma e, divided by alpha + sigma, is y = (1 - t) x + t e with the
    time t = sigma / (alpha + sigma), from 0 for data to 1 for noise. Along the line the velocity is
    e - x. Diffusion steps, which condition the networks, are real numbers here, from -1 for data to
    the last step.

    Args:
        scheduler: The diffusion process, with its prediction type.
    """

    def __init__(self, scheduler: "DDIMScheduler | FlowMapScheduler") -> None:
        # alpha = cos(angle) and sigma = sin(angle); angle 0, clean data, is prepended as step -1.
        # Interpolating angles keeps alpha^2 + sigma^2 = 1 between two steps.
        kept = scheduler.alphas_cumprod.double()
        angle = torch.atan2((1 - kept).sqrt(), kept.sqrt())
        self._angles = torch.cat([angle.new_zeros(1), angle])
        self.predicts_noise = scheduler.config.prediction_type == "epsilon"

    @property
    def last(self) -> Float[Tensor, ""]:
        """Return the time of the last diffusion step; 1 with zero terminal SNR."""
        angle = self._angles[-1]
        # t = sigma / (alpha + sigma)
        return (angle.sin() / (angle.sin() + angle.cos())).float()

    def time_at(self, step: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the time of diffusion steps."""
        # index 0 of the angles is step -1; steps between two integers are interpolated
        position = (step.double() + 1).clamp(0, len(self._angles) - 1)
        angles = self._angles.to(step.device)
        below = position.floor().long().clamp(max=len(angles) - 2)
        angle = torch.lerp(angles[below], angles[below + 1], position - below)
        return (angle.sin() / (angle.sin() + angle.cos())).float()

    def step_at(self, time: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the diffusion step of times, the inverse of `time_at`."""
        angles = self._angles.to(time.device)
        # sigma / alpha = t / (1 - t)
        angle = torch.atan2(time.double(), 1 - time.double()).clamp(max=angles[-1])
        above = torch.searchsorted(angles, angle).clamp(1, len(angles) - 1)
        low, high = angles[above - 1], angles[above]
        return (above - 2 + (angle - low) / (high - low)).float()

    def scale(self, time: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return alpha + sigma, the factor from points on the line to the network's input."""
        # alpha = (1 - t)(alpha + sigma), sigma = t (alpha + sigma) and alpha^2 + sigma^2 = 1
        return (time.square() + (1 - time).square()).rsqrt()

    def velocity(self, prediction: Latents, points: Latents, time: Float[Tensor, "b"]) -> Latents:
        """Convert a network's prediction to the velocity e - x.

        With v = alpha e - sigma x and the network's input z, it is (sigma - alpha) z + (alpha +
        sigma) v. A predicted noise e is first converted to v = (e - sigma z) / alpha.

        Args:
            prediction: Predicted noise or v.
            points: Points on the lines, not scaled for the network.
            time: Of each video.
        """
        alpha, sigma, scale = self._coefficients(time, points)
        noisy = points * scale
        v = (prediction - sigma * noisy) / alpha.clamp_min(_LEAST_ALPHA)
        return (sigma - alpha) * noisy + scale * (v if self.predicts_noise else prediction)

    def prediction(self, velocity: Latents, points: Latents, time: Float[Tensor, "b"]) -> Latents:
        """Convert a velocity to the network's prediction, the inverse of `velocity`."""
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
    """Return the training target of the mean velocity between two times.

    With u(y, t, r) the mean velocity, the flow map is y - (t - r) u. It is constant along the
    trajectory of y, which gives u = v - (t - r) du/dt (Geng et al., 2505.13447, equation 6), with v
    the velocity at t. The total derivative is approximated by the central difference of u at two
    close points of the trajectory, one-sided at the ends of the time interval.

    Args:
        mean_direction: u, the student network.
        points: y; the first axis is the video.
        direction: v at these points.
        time: t of each video.
        target_time: r of each video, at most t. Where both are equal, the result is v.
        difference: Step of the central difference, in time.
        last: Time of the last diffusion step.
    """
    later = torch.minimum(time + difference, torch.as_tensor(last).to(time))
    earlier = (time - difference).clamp(min=0)

    def at(moment: Tensor) -> Tensor:
        # y moves along the tangent of its trajectory, which has the error O(difference^2)
        moved = points + _expand(moment - time, points) * direction
        return mean_direction(moved, moment, target_time)

    derivative = (at(later) - at(earlier)) / _expand(later - earlier, points)
    return direction - _expand(time - target_time, points) * derivative


def _expand(values: Float[Tensor, "b"], like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


class FlowMapScheduler(SchedulerMixin, ConfigMixin):
    """Scheduler of a flow map: maps z at one diffusion step to z at the next.

    A step has no discretization error. The interface is that of diffusers' schedulers, but the
    network is also conditioned on the target of each step (`target_of`).

    Args:
        num_train_timesteps: Diffusion steps of the process.
        beta_start: As in `DDIMScheduler`, like all following arguments.
        beta_end: Last beta.
        beta_schedule: Schedule of the betas.
        prediction_type: Prediction type of the network.
        rescale_betas_zero_snr: Whether the last step has zero SNR.
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
        """Build the scheduler from the configuration of another scheduler of the same process."""
        names = inspect.signature(cls.__init__).parameters
        return cls(**{name: value for name, value in config.items() if name in names})

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str = "cpu") -> None:
        """Space steps evenly from the last diffusion step down to clean latents."""
        total = self.config.num_train_timesteps
        spaced = torch.arange(num_inference_steps, 0, -1) * total / num_inference_steps
        self.timesteps = (spaced.round().long() - 1).to(device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int | None = None) -> Tensor:  # noqa: ARG002
        """Return the sample unchanged."""
        return sample

    def target_of(self, timestep: Tensor | int) -> int:
        """Return the target of a step of `timesteps`: the next one, or -1 for clean latents."""
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
        """Return the sample at the target of a step, in a tuple.

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
        # the flow map: y_r = y_t - (t - r) u(y_t, t, r)
        moved = points - _expand(time - target, sample) * velocity
        return (moved * _expand(self.path.scale(target), sample),)

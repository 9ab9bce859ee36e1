"""Stage `distill`: distills the key-frame network into a flow map for few steps."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from magicvideo.diffusion.flow_map import FlowMapScheduler, LinearPath, flow_map_target
from magicvideo.diffusion.loss import temporal_mode_weights
from magicvideo.diffusion.noise import correlated_noise, initial_latent_noise, noise_covariance
from magicvideo.diffusion.sampling import denoising_loop
from magicvideo.models.autoencoder import decode_latents
from magicvideo.models.conditioning import encode_text
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.models.unet import FlowMapUNet, VideoUNet, latent_size
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents, Tokens
from magicvideo.training.loader import AnyBatch, BatchSource
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import DistillStageConfig, NoiseConfig
from magicvideo.training.tasks.batches import (
    draw_given_frames,
    draw_motion,
    encode_captions,
    encode_latents,
    full_precision,
    to_device,
)
from magicvideo.training.tasks.denoiser import build_training_scheduler

_PREVIEWS = 4


@dataclass(frozen=True)
class ClipConditions:
    """Conditions of both networks, for a batch of clips.

    Attributes:
        tokens: Tokens of the captions.
        fps: Frames per second.
        motion: Motion scores, NaN where unknown; None without motion condition.
        latents: Clean latents.
        given: Whether each frame is given (clean); None if none is.
    """

    tokens: Tokens
    fps: Float[Tensor, " b"]
    motion: Float[Tensor, " b"] | None
    latents: Latents
    given: Bool[Tensor, "b f"] | None

    def select(self, rows: Tensor) -> "ClipConditions":
        """Select or repeat the conditions of clips."""
        return ClipConditions(
            self.tokens[rows],
            self.fps[rows],
            None if self.motion is None else self.motion[rows],
            self.latents[rows],
            None if self.given is None else self.given[rows],
        )


class DistillTask:
    """Train the flow map of a teacher's guided trajectories.

    Args:
        network: The student: the teacher's weights, with an embedding of the interval.
        teacher: The frozen key-frame network.
        encoders: The frozen encoders.
        config: The stage's settings.
        noise: The diffusion process.
        batches: Clips of the training split with their captions.
        guidance_scale: Guidance scale of the teacher.
        guidance_stop: Fraction of the teacher's steps that use guidance.
    """

    def __init__(
        self,
        network: VideoUNet,
        teacher: VideoUNet,
        encoders: FrozenEncoders,
        config: DistillStageConfig,
        noise: NoiseConfig,
        batches: BatchSource,
        guidance_scale: float,
        guidance_stop: float,
    ) -> None:
        self.network, self.encoders, self.config, self.batches = network, encoders, config, batches
        self.teacher = teacher.requires_grad_(requires_grad=False).eval()
        self.guidance_scale, self.guidance_stop = guidance_scale, guidance_stop
        self.scheduler = build_training_scheduler(noise)
        self.path = LinearPath(self.scheduler)
        self.num_frames = batches.num_frames
        self.noise_correlation, self.noise_decay = noise.noise_correlation, noise.noise_decay
        self.max_given_frames = min(config.max_given_frames, self.num_frames - 1)
        self.mode_weights: Tensor | None = None
        if config.mode_weight_limit is not None:
            covariance = noise_covariance(self.num_frames, self.noise_correlation, self.noise_decay)
            self.mode_weights = temporal_mode_weights(covariance, config.mode_weight_limit)
        encoders.freeze()

    def lr_scale(self, name: str) -> float:  # noqa: ARG002 - all parameters learn alike
        """Return the factor on the learning rate of a parameter."""
        return 1.0

    def losses(
        self, network: nn.Module, batch: AnyBatch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the squared error of the flow map, and its parts.

        `velocity_loss` is the error over intervals of zero length, whose target is the teacher's
        velocity, and `map_loss` that over other intervals.
        """
        device = next(network.parameters()).device
        size = len(batch.captions)
        time, target_time, over_interval = self._draw_times(size, generator, device)
        with torch.no_grad():
            latents = encode_latents(self.encoders, batch, device)
            no_caption = torch.zeros(size, dtype=torch.bool)
            tokens = encode_captions(self.encoders, batch, no_caption, device)
            empty = encode_captions(self.encoders, batch, ~no_caption, device)
        noise = to_device(
            correlated_noise(
                tuple(latents.shape), generator, self.noise_correlation, self.noise_decay
            ),
            device,
        )
        given: Tensor | None = None
        motion: Tensor | None = None
        if self.config.given_frames_prob and self.max_given_frames:
            given = draw_given_frames(
                size,
                self.num_frames,
                self.config.given_frames_prob,
                self.max_given_frames,
                generator,
            )
            given = to_device(given, device)
        if self.network.config.motion_condition:
            motion = draw_motion(
                latents, self.network.config, self.config.motion_dropout, generator
            )
        conditions = ClipConditions(tokens, batch.fps.to(device), motion, latents, given)
        rows = to_device(over_interval.nonzero()[:, 0], device)
        over_interval = to_device(over_interval, device)
        # y = (1 - t) x + t e, a point on the straight line between data and noise (D17)
        points = torch.lerp(latents, noise, time[:, None, None, None, None])

        with torch.no_grad():
            # r = t: the mean velocity over an interval of zero length is the teacher's guided
            # velocity w
            target = self._guided_direction(points, time, conditions, empty)
            if len(rows):
                # a finite difference needs float32
                with full_precision(device):
                    selected = conditions.select(rows)

                    def direction(points: Tensor, time: Tensor, target_time: Tensor) -> Tensor:
                        return self._direction(network, points, time, target_time, selected)

                    # r < t: u = w - (t - r) du/dt, with the student's own derivative, without
                    # gradient
                    over = flow_map_target(
                        direction,
                        points[rows],
                        target[rows],
                        time[rows],
                        target_time[rows],
                        self.config.finite_difference,
                        self.path.last,
                    )
                target = target.index_copy(0, rows, over)
            # compare in the network's prediction type, in which it was pretrained
            target = self.path.prediction(target, points, time)
        prediction = self._predict(network, points, time, target_time, conditions)
        errors = self._squared_errors(prediction - target, given)
        # targets over intervals depend on the student itself; limit the weight of single clips
        weights = torch.where(over_interval, 1 / (1 + errors.detach()), 1.0)
        return {
            "loss": (weights * errors).mean(),
            "velocity_loss": _mean_where(~over_interval, errors),
            "map_loss": _mean_where(over_interval, errors),
        }

    def _draw_times(
        self, size: int, generator: StackedGenerator, device: torch.device
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """Sample the time of each clip, uniform in diffusion steps, and its target time.

        Returns:
            Both times on the device, and on the CPU whether they differ.
        """
        last, config = self.scheduler.config.num_train_timesteps - 1, self.config
        steps, kind, share = (generator.uniform(size) for _ in range(3))
        over_interval = kind >= config.diagonal_prob
        # with probability to_data_prob r = 0 (one step to the data), with diagonal_prob r = t,
        # otherwise r is uniform in [0, t]
        share = share.masked_fill(kind < config.diagonal_prob + config.to_data_prob, 0.0)
        share = share.masked_fill(~over_interval, 1.0)
        time = self.path.time_at(last * to_device(steps, device))
        return time, to_device(share, device) * time, over_interval

    def _predict(
        self,
        network: nn.Module,
        points: Latents,
        time: Float[Tensor, " b"],
        target_time: Float[Tensor, " b"] | None,
        conditions: ClipConditions,
    ) -> Latents:
        """Return the velocity that a network predicts; a target of None is for the teacher."""
        # z = (alpha + sigma) y is the network's input; given frames are clean and have step 0
        noisy = points * self.path.scale(time)[:, None, None, None, None]
        steps = self.path.step_at(time).clamp_min(0)
        if conditions.given is not None:
            noisy = torch.where(conditions.given[:, :, None, None, None], conditions.latents, noisy)
            steps = steps[:, None].masked_fill(conditions.given, 0)
        output: tuple[Tensor] = network(
            noisy,
            steps,
            conditions.tokens,
            conditions.fps,
            motion=conditions.motion,
            target_timestep=None if target_time is None else self.path.step_at(target_time),
            return_dict=False,
        )
        return output[0].float()

    def _direction(
        self,
        network: nn.Module,
        points: Latents,
        time: Float[Tensor, " b"],
        target_time: Float[Tensor, " b"] | None,
        conditions: ClipConditions,
    ) -> Latents:
        """Return the velocity of the trajectories, which is zero for given frames."""
        prediction = self._predict(network, points, time, target_time, conditions)
        velocity = self.path.velocity(prediction, points, time)
        if conditions.given is None:
            return velocity
        return velocity.masked_fill(conditions.given[:, :, None, None, None], 0)

    def _guided_direction(
        self, points: Latents, time: Float[Tensor, " b"], conditions: ClipConditions, empty: Tokens
    ) -> Latents:
        """Return the teacher's velocity, with guidance at steps that use it.

        Guidance is applied to predictions, as in sampling; velocity is linear in them.
        """
        self.teacher.to(points.device)
        both = torch.arange(len(points), device=points.device).repeat(2)
        tokens = torch.cat([empty, conditions.tokens])
        twice = replace(conditions.select(both), tokens=tokens)
        direction = self._direction(self.teacher, points[both], time[both], None, twice)
        plain, conditional = direction.chunk(2)
        total = self.scheduler.config.num_train_timesteps
        # the sampler applies guidance during the first guidance_stop of its steps, which are the
        # highest timesteps
        is_guided = self.path.step_at(time) >= (1 - self.guidance_stop) * total
        scale = torch.where(is_guided, self.guidance_scale, 1.0)[:, None, None, None, None]
        return plain + scale * (conditional - plain)

    def _squared_errors(
        self, error: Latents, given: Bool[Tensor, "b f"] | None
    ) -> Float[Tensor, " b"]:
        """Return the mean squared error of each clip, with weighted temporal modes."""
        if given is not None:
            error = error.masked_fill(given[:, :, None, None, None], 0)
        weighted = error
        if self.mode_weights is not None:
            # e^T W e over frames
            weighted = torch.einsum("fg,bgchw->bfchw", self.mode_weights.to(error), error)
        return (error * weighted).flatten(1).mean(dim=1)

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return samples for some captions with few steps, one row per clip."""
        captions, fps = self.batches.preview_captions(_PREVIEWS)
        device = next(self.network.parameters()).device
        self.encoders.to(device)
        config = self.network.config
        shape = (self.num_frames, config.in_channels, *latent_size(config.sample_size))
        noise = torch.cat(
            [
                initial_latent_noise(seed, shape, self.noise_correlation, self.noise_decay)
                for seed in range(len(captions))
            ]
        )
        scheduler = FlowMapScheduler.of_process(self.scheduler.config)
        unet = FlowMapUNet(self.network, scheduler.target_of)
        tokens = encode_text(self.encoders.text_encoder, self.encoders.tokenizer, captions)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            return unet(latents, timestep, tokens, fps).sample

        samples = denoising_loop(predict, noise.to(device), scheduler, self.config.sampling_steps)
        return image_grid(decode_latents(self.encoders.vae, samples), enlarge=1)

    def save(self, folder: Path) -> None:
        """Write the component `unet`."""
        self.network.save_pretrained(folder / "unet")


def _mean_where(chosen: Bool[Tensor, " b"], errors: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the mean of the selected errors, 0 if there are none."""
    return (errors.detach() * chosen).sum() / chosen.sum().clamp_min(1)

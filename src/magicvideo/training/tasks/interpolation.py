"""Stage `interpolation`: the frames between two key frames."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from magicvideo.diffusion.loss import denoising_loss, prediction_target, sample_timesteps
from magicvideo.diffusion.noise import correlated_noise, seeded_generator
from magicvideo.diffusion.sampling import interleave_frames, make_scheduler, sample_inbetweens
from magicvideo.models.autoencoder import decode_latents
from magicvideo.models.conditioning import encode_text
from magicvideo.models.interpolator import (
    Interpolator,
    every_nth,
    keyframe_rms_distance,
    lerp_keyframes,
)
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents
from magicvideo.training.loader import AnyBatch, BatchSource
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import InterpolationStageConfig, NoiseConfig
from magicvideo.training.tasks.batches import (
    batch_frames,
    encode_captions,
    encode_latents,
    full_precision,
    slice_batch,
    to_device,
)
from magicvideo.training.tasks.denoiser import build_training_scheduler

_WINDOWS_FOR_SCALE, _PREVIEWED, _PREVIEW_STEPS = 64, 4, 8


class InterpolationTask:
    """Train the interpolator: regress the error of linear interpolation, denoise the residual.

    The keys are noised up to a random level, on which the network is conditioned, because generated
    key frames are not clean either (conditioning augmentation; Ho et al., 2106.15282, section 4).

    Args:
        network: The initialized interpolator.
        encoders: The frozen encoders.
        config: The stage's settings.
        noise: The diffusion process.
        batches: Windows of the training split: a key, the frames after it, and the next key.
    """

    def __init__(
        self,
        network: Interpolator,
        encoders: FrozenEncoders,
        config: InterpolationStageConfig,
        noise: NoiseConfig,
        batches: BatchSource,
    ) -> None:
        self.network, self.encoders, self.config, self.batches = network, encoders, config, batches
        self.scheduler = build_training_scheduler(noise)
        self.noise_correlation = noise.noise_correlation
        encoders.freeze()

    def lr_scale(self, name: str) -> float:
        """Return the factor on the learning rate, which differs for the pretrained U-Net."""
        return self.config.pretrained_lr_scale if name.startswith("unet.") else 1.0

    @torch.no_grad()
    def calibrate(self) -> None:
        """Measure the residual scale on clips, and store it in the network's config.

        It is the RMS error of linear interpolation relative to the RMS distance of the keys.
        """
        device = next(self.network.parameters()).device
        squares = []
        # one window at a time, because large autoencoders need gigabytes for a few frames
        for position in range(_WINDOWS_FOR_SCALE):
            latents = self._latents(self.batches.get_other_batch(1, position, 1), device)
            keys, middle = latents[:, [0, -1]], latents[:, 1:-1]
            # (x - l) / d, with d the RMS distance of the keys: its RMS is the residual scale
            residuals = (middle - lerp_keyframes(keys, middle.shape[1])) / keyframe_rms_distance(
                keys
            )
            squares.append(residuals.square().mean())
        self.network.register_to_config(residual_scale=float(torch.stack(squares).mean().sqrt()))

    def losses(
        self, network: nn.Module, batch: AnyBatch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the errors of the regression and of the U-Net."""
        device = next(network.parameters()).device
        size = len(batch.captions)
        few = every_nth(self.config.denoise_every)
        dropped = generator.uniform(size) < self.config.condition_dropout
        steps = self.scheduler.config.num_train_timesteps
        config = self.config
        timesteps = sample_timesteps(
            size, steps, config.terminal_step_prob, generator, config.timestep_power
        )[few].to(device)
        # noise level of the keys as a diffusion step; clean keys have level 0
        levels = generator.integers(self.config.max_noise_level, size)
        levels = levels.masked_fill(generator.uniform(size) < self.config.clean_prob, 0)
        timesteps, levels = to_device(timesteps, device), to_device(levels, device)
        latents = self._latents(batch, device)
        clean, middle = latents[:, [0, -1]], latents[:, 1:-1]
        key_noise = to_device(generator.normal(clean.shape), device)
        noised = self.scheduler.add_noise(clean, key_noise, levels)
        noisy_keys = torch.where((levels > 0)[:, None, None, None, None], noised, clean)
        # the noise of the few windows that the U-Net processes
        noise = to_device(
            correlated_noise(tuple(middle.shape), generator, self.noise_correlation)[few], device
        )
        with torch.no_grad():
            tokens = encode_captions(self.encoders, slice_batch(batch, few), dropped[few], device)
        output = network(
            middle,
            clean,
            noisy_keys,
            levels,
            lambda residuals: self.scheduler.add_noise(residuals, noise, timesteps),
            timesteps,
            tokens,
            batch.fps[few].to(device),
        )
        # the U-Net's loss is the denoiser's, on the residuals r
        target = prediction_target(self.scheduler, output.diffusion_target, noise, timesteps)
        denoising = denoising_loss(
            self.scheduler, output.diffusion_prediction, target, timesteps, self.config.snr_gamma
        )
        # smooth L1 instead of the square, because unpredictable gaps would dominate the mean
        estimate = F.smooth_l1_loss(
            output.residual_estimate.float(), output.residual_target.float()
        )
        return {"loss": denoising + estimate, "denoising": denoising, "estimate": estimate}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return some windows, real frames above interpolated ones."""
        batch = self.batches.get_other_batch(2, 0, _PREVIEWED)
        device = next(self.network.parameters()).device
        latents = self._latents(batch, device)
        keys = latents[:, [0, -1]]
        self.encoders.to(device)
        shape = latents[:, 1:-1].shape
        noise = correlated_noise(
            tuple(shape), StackedGenerator([seeded_generator("preview")]), self.noise_correlation
        )
        inserted = sample_inbetweens(
            self.network.estimate,
            self.network.denoise,
            keys,
            keys,
            noise.to(device),
            make_scheduler(dict(self.scheduler.config), "ddim"),
            _PREVIEW_STEPS,
            0,
            encode_text(self.encoders.text_encoder, self.encoders.tokenizer, batch.captions),
            batch.fps.to(device),
        )
        made = decode_latents(self.encoders.vae, interleave_frames(keys, inserted))
        rows = torch.stack([batch_frames(self.encoders, batch, device), made], dim=1).flatten(0, 1)
        return image_grid(rows, enlarge=1)

    def save(self, folder: Path) -> None:
        """Write the component `interpolator`."""
        self.network.save_pretrained(folder / "interpolator")

    @torch.no_grad()
    def _latents(self, batch: AnyBatch, device: torch.device) -> Latents:
        # targets are small differences of latents, which half precision would round away
        with full_precision(device):
            return encode_latents(self.encoders, batch, device)

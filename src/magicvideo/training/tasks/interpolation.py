"""Stage `interpolation`: the frames between two key frames."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.shards.dataset import ShardDataset
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
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import InterpolationStageConfig, NoiseConfig
from magicvideo.training.task import AnyBatch
from magicvideo.training.tasks.batches import (
    batch_frames,
    encode_captions,
    encode_latents,
    get_batch,
    slice_batch,
)
from magicvideo.training.tasks.denoiser import build_training_scheduler

_WINDOWS_FOR_SCALE, _PREVIEWED, _PREVIEW_STEPS = 64, 4, 8


class InterpolationTask:
    """Estimate what linear blending of two key frames gets wrong, and denoise what is left.

    The keys are noised up to a random level, which the network is told: key frames that a network
    made are not clean either (Ho et al., 2106.15282, section 4, conditioning augmentation).

    Args:
        network: The interpolator, initialised. Its `residual_scale` is set here, from clips.
        frozen: The parts below it.
        settings: The stage's settings.
        noise: The diffusion process.
        dataset: Clips of the training split.
        seed: Of the order of samples.
    """

    def __init__(
        self,
        network: Interpolator,
        frozen: FrozenEncoders,
        settings: InterpolationStageConfig,
        noise: NoiseConfig,
        dataset: ClipDataset | ShardDataset,
        seed: int,
    ) -> None:
        self.network, self.frozen, self.settings = network, frozen, settings
        self.dataset, self.seed = dataset, seed
        self.scheduler, self.noise_correlation = (
            build_training_scheduler(noise),
            noise.noise_correlation,
        )
        for part in (frozen.vae, frozen.text_encoder, frozen.image_encoder):
            part.requires_grad_(requires_grad=False).eval()
        network.register_to_config(residual_scale=self._residual_scale())

    def get_batch(self, position: int) -> AnyBatch:
        """Return windows: a key, the frames after it, and the next key."""
        return self._windows(self.seed, position, self.settings.batch_size)

    def losses(
        self, network: nn.Module, batch: AnyBatch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the errors of the frames between the keys: those of the estimate and the U-Net."""
        device = next(network.parameters()).device
        size = len(batch.captions)
        few = every_nth(self.settings.denoise_every)
        dropped = generator.uniform(size) < self.settings.condition_dropout
        steps = self.scheduler.config.num_train_timesteps
        timesteps = sample_timesteps(size, steps, self.settings.terminal_step_prob, generator)[
            few
        ].to(device)
        levels = generator.integers(self.settings.max_noise_level, size)
        levels = levels.masked_fill(generator.uniform(size) < self.settings.clean_prob, 0).to(
            device
        )
        latents = self._latents(batch, device)
        clean, middle = latents[:, [0, -1]], latents[:, 1:-1]
        noised = self.scheduler.add_noise(clean, generator.normal(clean.shape).to(device), levels)
        noisy_keys = torch.where((levels > 0)[:, None, None, None, None], noised, clean)
        noise = correlated_noise(tuple(middle.shape), generator, self.noise_correlation)[few].to(
            device
        )
        with torch.no_grad():
            tokens = encode_captions(self.frozen, slice_batch(batch, few), dropped[few], device)
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
        target = prediction_target(self.scheduler, output.diffusion_target, noise, timesteps)
        denoising = denoising_loss(
            self.scheduler, output.diffusion_prediction, target, timesteps, self.settings.snr_gamma
        )
        # not the square: in some gaps nothing can be told, and they would outweigh the others
        estimate = F.smooth_l1_loss(
            output.residual_estimate.float(), output.residual_target.float()
        )
        return {"loss": denoising + estimate, "denoising": denoising, "estimate": estimate}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return some clips' windows, real above interpolated."""
        batch = self._windows(self.seed + 2, 0, _PREVIEWED)
        device = next(self.network.parameters()).device
        latents = self._latents(batch, device)
        keys = latents[:, [0, -1]]
        self.frozen.to(device)
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
            encode_text(self.frozen.text_encoder, self.frozen.tokenizer, batch.captions),
            batch.fps.to(device),
        )
        made = decode_latents(self.frozen.vae, interleave_frames(keys, inserted))
        rows = torch.stack([batch_frames(self.frozen, batch, device), made], dim=1).flatten(0, 1)
        return image_grid(rows, enlarge=1)

    def save(self, folder: Path) -> None:
        """Write the component `interpolator`."""
        self.network.save_pretrained(folder / "interpolator")

    def _residual_scale(self) -> float:
        """Return what blending gets wrong where keys differ by one: root mean square of windows."""
        device = next(self.network.parameters()).device
        squares = []
        # one window at a time: large autoencoders need gigabytes for a few frames
        for position in range(_WINDOWS_FOR_SCALE):
            latents = self._latents(self._windows(self.seed + 1, position, 1), device)
            keys, middle = latents[:, [0, -1]], latents[:, 1:-1]
            residuals = (middle - lerp_keyframes(keys, middle.shape[1])) / keyframe_rms_distance(
                keys
            )
            squares.append(residuals.square().mean())
        return float(torch.stack(squares).mean().sqrt())

    @torch.no_grad()
    def _latents(self, batch: AnyBatch, device: torch.device) -> Latents:
        # what is learned are small differences of latents, which half precision would round away
        with torch.autocast(device.type, enabled=False):
            return encode_latents(self.frozen, batch, device)

    def _windows(self, seed: int, position: int, batch_size: int) -> AnyBatch:
        return get_batch(
            self.dataset,
            seed,
            position,
            batch_size,
            num_frames=self.network.config.num_inserted + 2,
            strides=self.settings.strides,
            subject_balance=self.settings.subject_balance,
        )

"""Stage `upscaler`: trains super-resolution on crops of large frames."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from magicvideo.data.dataset import Batch
from magicvideo.data.degrade import paired_random_crop, random_degrade
from magicvideo.diffusion.loss import denoising_loss, prediction_target
from magicvideo.diffusion.noise import correlated_noise, seeded_generator
from magicvideo.diffusion.sampling import denoising_loop, make_scheduler
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_frames,
    vae_scale_factor,
)
from magicvideo.models.upscaler import Upscaler, upsample_bicubic
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import FoldedFrames
from magicvideo.training.loader import AnyBatch, BatchSource
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import NoiseConfig, UpscalerModelConfig, UpscalerStageConfig
from magicvideo.training.tasks.batches import full_precision, to_device
from magicvideo.training.tasks.denoiser import build_training_scheduler

# Sampling in one step from pure noise is the fastest way to a large frame. It needs v-prediction,
# because a noise prediction carries no information there, and zero terminal SNR.
_PROCESS = NoiseConfig(
    prediction_type="v_prediction",
    beta_schedule="squaredcos_cap_v2",
    beta_start=0.00085,
    beta_end=0.012,
    zero_terminal_snr=True,
    noise_correlation=0.0,
)
_FRAMES_FOR_SCALE, _PREVIEWED, _PREVIEW_STEPS = 64, 3, 4


class UpscalerTask:
    """Denoise residuals of large frames, conditioned on degraded small frames.

    Small frames are downsampled with random kernels, a fraction passes through the autoencoder with
    noise on its latents, and all get noise of a random level, on which the network is conditioned
    (conditioning augmentation; Ho et al., 2106.15282, section 4). Residuals are computed from the
    small frames without that last noise, so that one factor gives unit variance at any level, and a
    prediction of zero gives a clean frame.

    Args:
        network: The initialized upscaler.
        vae: The frozen autoencoder.
        config: The stage's settings.
        batches: Large single frames of the training split.
        seed: Seed of the calibration.

    Raises:
        UserError: If the sizes are inconsistent.
    """

    def __init__(
        self,
        network: Upscaler,
        vae: Autoencoder,
        config: UpscalerStageConfig,
        batches: BatchSource,
        seed: int,
    ) -> None:
        self.network, self.config, self.batches, self.seed = network, config, batches, seed
        self.vae = vae.requires_grad_(requires_grad=False).eval()
        self.scheduler = build_training_scheduler(_PROCESS)
        self._check_sizes()

    def lr_scale(self, name: str) -> float:  # noqa: ARG002 - all parameters learn alike
        """Return the factor on the learning rate of a parameter."""
        return 1.0

    def calibrate(self) -> None:
        """Measure the residual scale on frames, and store it in the network's config."""
        # a different order than in training, so that these frames are not its first batches
        batch = self.batches.get_other_batch(1, 0, _FRAMES_FOR_SCALE)
        generator = StackedGenerator([seeded_generator(self.seed, "upscaler", "scale")])
        residuals, _ = self._examples(_frames(batch, self.network), generator)
        self.network.register_to_config(residual_scale=float(residuals.square().mean().sqrt()))

    def losses(
        self, network: nn.Module, batch: Batch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the weighted denoising error of crops."""
        residuals, small = paired_random_crop(
            *self._examples(_frames(batch, network), generator),
            self.config.crop // self.network.config.factor,
            generator,
        )
        # r = (x - up(s)) / k has unit variance
        residuals, device = residuals / self.network.config.residual_scale, small.device
        size = len(small)
        # conditioning augmentation: noise on the network's small frames only, in units of pixels in
        # [-1, 1]
        levels = self.config.max_noise_level * generator.uniform(size)
        steps = self.scheduler.config.num_train_timesteps
        timesteps = to_device(generator.integers(steps, size), device)
        added = levels[:, None, None, None] * generator.normal(small.shape)
        noise = to_device(generator.normal(residuals.shape), device)
        prediction = network(
            self.scheduler.add_noise(residuals, noise, timesteps),
            small + to_device(added, device),
            timesteps,
            to_device(levels, device),
        )
        # the loss expects videos: each crop is a video with one frame
        target = prediction_target(self.scheduler, residuals[:, None], noise[:, None], timesteps)
        loss = denoising_loss(
            self.scheduler, prediction[:, None], target, timesteps, self.config.snr_gamma
        )
        return {"loss": loss}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return some frames, one row each: bicubic, upscaled, and real."""
        batch = self.batches.get_other_batch(2, 0, _PREVIEWED)
        network = self.network
        frames = _frames(batch, network)
        residuals, small = self._examples(frames, StackedGenerator([seeded_generator("preview")]))
        level = torch.zeros(len(small), device=small.device)

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            return network(noisy[0], small, timestep.expand(len(small)), level)[None]

        noise = correlated_noise(
            (1, *residuals.shape), StackedGenerator([seeded_generator("preview noise")])
        )
        scheduler = make_scheduler(dict(self.scheduler.config), "ddim")
        made = denoising_loop(predict, noise.to(small.device), scheduler, _PREVIEW_STEPS)[0]
        plain = upsample_bicubic(small, network.config.factor)
        finished = plain + network.config.residual_scale * made
        return image_grid(torch.stack([plain, finished, frames], dim=1))

    def save(self, folder: Path) -> None:
        """Write the components `upscaler` and `upscaler_scheduler`."""
        self.network.save_pretrained(folder / "upscaler")
        self.scheduler.save_pretrained(folder / "upscaler_scheduler")

    @torch.no_grad()
    def _examples(self, frames: FoldedFrames, generator: StackedGenerator) -> tuple[Tensor, Tensor]:
        """Return residuals, in pixels, and their small frames, uncropped."""
        config, factor = self.config, self.network.config.factor
        with full_precision(frames.device):  # no rounding of the data
            small = random_degrade(frames, factor, config.degradation_prob, generator)
        rebuilt = generator.uniform(len(small)) < config.vae_roundtrip_prob
        amounts = config.max_latent_noise * generator.uniform(len(small))
        if rebuilt.any():  # both are on the host: no synchronization
            device = small.device
            chosen = to_device(rebuilt.nonzero().flatten(), device)
            latents = encode_frames(self.vae.to(device), small[chosen][:, None])
            noise = generator.select(rebuilt).normal(latents.shape)
            # noise on latents simulates the errors of generated latents
            noise *= amounts[rebuilt][:, None, None, None, None]
            latents = latents + to_device(noise, device)
            small[chosen] = decode_latents(self.vae, latents)[:, 0]
        # k r = x - up(s), with s degraded but without the noise of the conditioning augmentation
        return frames - upsample_bicubic(small, factor), small

    def _check_sizes(self) -> None:
        size, crop, config = self.batches.size, self.config.crop, self.network.config
        unit = config.factor * self.network.size_divisor
        if crop % unit or crop > min(size):
            raise UserError(
                f"upscaler.crop={crop} is not a multiple of {unit} of at most {min(size)}, the "
                "shorter side of the frames in pixels."
            )
        unit = config.factor * vae_scale_factor(self.vae)
        if any(side % unit for side in size):
            raise UserError(
                f"The frames of stage upscaler have size {size}; both sides must be multiples of "
                f"{unit} pixels, as the autoencoder needs for the small frames."
            )


def _frames(batch: AnyBatch, network: nn.Module) -> FoldedFrames:
    assert isinstance(batch, Batch)
    return batch.frames[:, 0].to(next(network.parameters()).device)


def build_upscaler(config: UpscalerModelConfig, max_noise_level: float) -> Upscaler:
    """Build an upscaler of the given sizes."""
    return Upscaler(
        factor=config.factor,
        widths=config.widths,
        num_blocks=config.num_blocks,
        max_noise_level=max_noise_level,
    )

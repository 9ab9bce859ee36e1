"""Stage `upscaler`: what enlarging a small frame leaves out, on crops of large frames."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from magicvideo.data.batch_order import load_batch
from magicvideo.data.dataset import Batch, ClipDataset
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
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import NoiseConfig, UpscalerModelConfig, UpscalerStageConfig
from magicvideo.training.tasks.denoiser import build_training_scheduler

# One step from pure noise is the cheapest way to a large frame. It asks for velocity, since the
# noise tells nothing there, and for a schedule without signal at its end.
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
    """Denoise residuals of large frames, told by small ones that are as poor as generated ones.

    Small frames are made in various ways, a share of them passes the autoencoder with noise on its
    latents, and all get noise of a random level, which the network is told (Ho et al., 2106.15282,
    section 4, conditioning augmentation). Residuals are taken against the small frames without
    that last noise: one number then brings them to unit variance at any level, and a network that
    predicts nothing gives a clean frame.

    Args:
        settings: The stage's settings.
        vae: The autoencoder that generated frames pass, frozen.
        dataset: Clips of large frames, of the training split.
        seed: Of the order of samples.

    Raises:
        UserError: If the sizes do not fit each other.
    """

    def __init__(
        self, settings: UpscalerStageConfig, vae: Autoencoder, dataset: ClipDataset, seed: int
    ) -> None:
        self.settings, self.dataset, self.seed = settings, dataset, seed
        self.network = build_upscaler(settings.model, settings.max_noise_level)
        self.vae = vae.requires_grad_(requires_grad=False).eval()
        self.scheduler = build_training_scheduler(_PROCESS)
        self._check_sizes()
        # any seed would do, so long as these frames are not the first batches
        batch = load_batch(dataset, seed + 1, 0, _FRAMES_FOR_SCALE, num_frames=1)
        first = _frames(batch, self.network)
        residuals, _ = self._examples(
            first, StackedGenerator([seeded_generator(seed, "upscaler", "scale")])
        )
        self.network.register_to_config(residual_scale=float(residuals.square().mean().sqrt()))

    def get_batch(self, position: int) -> Batch:
        """Return single frames."""
        return load_batch(
            self.dataset,
            self.seed,
            position,
            self.settings.batch_size,
            num_frames=1,
            subject_balance=self.settings.subject_balance,
        )

    def losses(
        self, network: nn.Module, batch: Batch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the weighted denoising error of crops."""
        residuals, small = paired_random_crop(
            *self._examples(_frames(batch, network), generator),
            self.settings.crop // self.network.config.factor,
            generator,
        )
        residuals, device = residuals / self.network.config.residual_scale, small.device
        size = len(small)
        levels = self.settings.max_noise_level * generator.uniform(size)
        steps = self.scheduler.config.num_train_timesteps
        timesteps = generator.integers(steps, size).to(device)
        added = levels[:, None, None, None] * generator.normal(small.shape)
        noise = generator.normal(residuals.shape).to(device)
        prediction = network(
            self.scheduler.add_noise(residuals, noise, timesteps),
            small + added.to(device),
            timesteps,
            levels.to(device),
        )
        # the objective speaks of videos; each crop is one of a single frame
        target = prediction_target(self.scheduler, residuals[:, None], noise[:, None], timesteps)
        loss = denoising_loss(
            self.scheduler, prediction[:, None], target, timesteps, self.settings.snr_gamma
        )
        return {"loss": loss}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return some frames, a row each: enlarged, the same with its residual, and real."""
        batch = load_batch(self.dataset, self.seed + 2, 0, _PREVIEWED, num_frames=1)
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
        """Return residuals, in pixels, and the small frames that they belong to, both whole."""
        settings, factor = self.settings, self.network.config.factor
        with torch.autocast(frames.device.type, enabled=False):  # data are not rounded
            small = random_degrade(frames, factor, settings.degradation_prob, generator)
        rebuilt = generator.uniform(len(small)) < settings.vae_roundtrip_prob
        amounts = settings.max_latent_noise * generator.uniform(len(small))
        if rebuilt.any():
            latents = encode_frames(self.vae.to(small.device), small[rebuilt][:, None])
            noise = generator.select(rebuilt).normal(latents.shape)
            noise *= amounts[rebuilt][:, None, None, None, None]
            small[rebuilt] = decode_latents(self.vae, latents + noise.to(small.device))[:, 0]
        return frames - upsample_bicubic(small, factor), small

    def _check_sizes(self) -> None:
        size, crop, config = self.dataset.info.size, self.settings.crop, self.network.config
        unit = config.factor * self.network.size_divisor
        if crop % unit or crop > size:
            raise UserError(
                f"upscaler.crop={crop} is not a multiple of {unit} of at most {size}, the size of "
                f"the frames in {self.dataset.folder}."
            )
        unit = config.factor * vae_scale_factor(self.vae)
        if size % unit:
            raise UserError(
                f"The frames in {self.dataset.folder} have {size} pixels a side; the upscaler's "
                f"must be multiples of {unit}, so that the autoencoder fits the small ones."
            )


def _frames(batch: Batch, network: nn.Module) -> FoldedFrames:
    return batch.frames[:, 0].to(next(network.parameters()).device)


def build_upscaler(settings: UpscalerModelConfig, max_noise_level: float) -> Upscaler:
    """Return a fresh upscaler of the given sizes."""
    return Upscaler(
        factor=settings.factor,
        widths=settings.widths,
        num_blocks=settings.num_blocks,
        max_noise_level=max_noise_level,
    )
